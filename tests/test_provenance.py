"""The AI mark: found by an independent reader, read back whatever the prompt, written whole or not at all, signed."""

import datetime as dt
import errno
import io
import json
import os
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from realgen import provenance
from realgen.core.errors import InputError, OutputError, RealGenError
from realgen.core.types import Origin
from realgen.provenance import TRAINED, Signer, TakenError, mark, packet, read, write_whole

RECIPE = {"kind": "generate", "generator": {"name": "flux", "options": {"steps": 20, "size": [128, 128]}}}
ORIGIN = Origin(7, "0.1.0", RECIPE, "an old <fisherman> & 'his' \"boat\"", "a photograph ]]> of 東京\n\x00\x1b\ufffe")
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp"]


@pytest.fixture
def image() -> Image.Image:
    return Image.linear_gradient("L").resize((48, 32)).convert("RGB")


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk, read from the bytes alone (PNG specification, section 5.3)."""
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
            data[at + 4 : at + 8 + length]
        )
        at += 12 + length


def origin_of(record: provenance.Record) -> Origin:
    return Origin(record.seed, record.version, record.recipe, record.prompt, record.text)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    message: str = caught.value.message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PNG"])
def test_what_is_marked_is_read_back(tmp_path: Path, image: Image.Image, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    mark(image, path, origin=ORIGIN)
    record = read(path)
    assert origin_of(record) == ORIGIN
    assert record.is_ai
    assert record.digital_source_type == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert record.size == (48, 32)
    assert names_in(tmp_path) == [path.name]


def test_a_resized_copy_still_says_how_large_it_was_made(tmp_path: Path, image: Image.Image) -> None:
    mark(image, tmp_path / "a.webp", origin=ORIGIN)
    with Image.open(tmp_path / "a.webp") as opened:
        opened.resize((24, 16)).save(tmp_path / "small.webp", xmp=opened.info["xmp"])
    assert read(tmp_path / "small.webp").size == (48, 32)


def test_a_file_from_before_sizes_were_recorded_has_that_of_its_pixels(tmp_path: Path, image: Image.Image) -> None:
    xmp = re.sub("<realgen:size>.*</realgen:size>", "", packet(ORIGIN, size=(1, 1)))
    image.save(tmp_path / "a.webp", xmp=xmp.encode())
    assert read(tmp_path / "a.webp").size == (48, 32)


@pytest.mark.parametrize("field", ["size", "seed"])
@pytest.mark.parametrize("value", ["[0, 8]", "[8]", "[8.0, 8]", "[8, 99999999]", str(2**70), "-1"])
def test_a_record_asks_for_no_more_than_a_request_may(
    tmp_path: Path, image: Image.Image, field: str, value: str
) -> None:
    xmp = re.sub(
        f"<realgen:{field}>.*</realgen:{field}>",
        f"<realgen:{field}>{value}</realgen:{field}>",
        packet(ORIGIN, size=(8, 8)),
    )
    image.save(tmp_path / "a.webp", xmp=xmp.encode())
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path / "a.webp")


def test_png_keeps_every_pixel(tmp_path: Path, image: Image.Image) -> None:
    mark(image, tmp_path / "a.png", origin=ORIGIN)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.tobytes() == image.tobytes()


def test_an_independent_reader_finds_the_mark_in_png(tmp_path: Path, image: Image.Image) -> None:
    mark(image, tmp_path / "a.png", origin=ORIGIN)
    chunks = list(png_chunks((tmp_path / "a.png").read_bytes()))
    kinds = [kind for kind, _ in chunks]
    content = dict(chunks)[b"iTXt"]
    assert content.startswith(b"XML:com.adobe.xmp\0\0\0\0\0<?xpacket")  # keyword, uncompressed, no language, no title
    assert b"<Iptc4xmpExt:DigitalSourceType>" + TRAINED.encode() in content
    assert kinds.index(b"iTXt") < kinds.index(b"IDAT")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_the_mark_is_plain_in_the_bytes(tmp_path: Path, image: Image.Image, suffix: str) -> None:
    mark(image, tmp_path / f"a{suffix}", origin=ORIGIN)
    data = (tmp_path / f"a{suffix}").read_bytes()
    header = b"\xff\xe1" if suffix == ".jpg" else b"XMP "
    assert header in data
    assert TRAINED.encode() in data


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_withheld_prompt_is_nowhere_and_the_mark_stays(tmp_path: Path, image: Image.Image, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    mark(image, path, origin=Origin(7, "0.1.0", RECIPE))
    record = read(path)
    assert (record.prompt, record.text, record.is_ai) == (None, None, True)
    assert b"realgen:prompt" not in path.read_bytes()


@settings(max_examples=200, deadline=None)
@given(prompt=st.text(), text=st.text() | st.none(), version=st.text(min_size=1), seed=st.integers(0, 2**63 - 1))
def test_any_prompt_survives_xmp(prompt: str, text: str | None, version: str, seed: int) -> None:
    path = Path("packet")
    origin = Origin(seed, version, RECIPE, prompt, text)
    properties = provenance._properties(packet(origin, size=(8, 8)).encode(), path)
    assert properties["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"] == TRAINED
    expected = {"version": version, "seed": seed, "recipe": RECIPE, "prompt": prompt, "text": text, "size": [8, 8]}
    found = {name: json.loads(properties[f"{{urn:realgen:ns:1.0/}}{name}"]) for name in provenance._names(properties)}
    assert found == {name: value for name, value in expected.items() if value is not None}


@pytest.mark.parametrize("replace", [False, True])
def test_an_existing_file_is_kept_byte_for_byte(tmp_path: Path, image: Image.Image, replace: bool) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    if replace:
        mark(image, path, origin=ORIGIN, replace=True)
        assert read(path).seed == 7
        return
    with pytest.raises(TakenError, match="exists already"):
        mark(image, path, origin=ORIGIN)
    assert path.read_bytes() == b"mine"
    assert names_in(tmp_path) == ["a.png"]


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_full_disk_leaves_no_half_file(
    tmp_path: Path, image: Image.Image, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_open(path: Path, mode: str = "r") -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    if call == "link":  # and no name can be held for a rename either
        place = provenance._place

        def place_on_full(staged: Path, path: Path) -> None:
            monkeypatch.setattr(Path, "open", full_open)
            place(staged, path)

        monkeypatch.setattr(provenance, "_place", place_on_full)
    with pytest.raises(OutputError, match="No space left") as caught:
        mark(image, tmp_path / "a.png", origin=ORIGIN)
    assert "free some space" in caught.value.hint
    assert names_in(tmp_path) == []


def test_a_full_disk_in_mid_write_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, data: Any, /) -> int:
            super().write(bytes(data)[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", lambda path, mode: Full(path, "x"))
    with pytest.raises(OutputError, match="No space left"):
        write_whole(tmp_path / "a.png", b"x" * 100)
    assert names_in(tmp_path) == []


def test_an_interrupt_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.png", b"x")
    assert names_in(tmp_path) == []


def test_a_file_system_without_hard_links_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    write_whole(tmp_path / "a", b"first")
    with pytest.raises(TakenError):
        write_whole(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names_in(tmp_path) == ["a"]


def test_a_missing_folder_is_one_line(tmp_path: Path, image: Image.Image) -> None:
    with pytest.raises(OutputError, match="No such file") as caught:
        mark(image, tmp_path / "none" / "a.png", origin=ORIGIN)
    assert caught.value.hint == "choose another --out"


def test_an_unknown_suffix_and_a_mode_that_does_not_fit_are_refused(tmp_path: Path, image: Image.Image) -> None:
    with pytest.raises(InputError, match=r"cannot save an image as .gif"):
        mark(image, tmp_path / "a.gif", origin=ORIGIN)
    with pytest.raises(OutputError, match=r"cannot save a.jpg as JPEG"):
        mark(image.convert("RGBA"), tmp_path / "a.jpg", origin=ORIGIN)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_truncated_image_is_refused_at_any_length(tmp_path: Path, image: Image.Image, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    mark(image, path, origin=ORIGIN)
    data = path.read_bytes()
    for length in [0, 1, 8, 20, 40, len(data) // 2, len(data) - 60]:
        path.write_bytes(data[:length])
        assert str(path) in refusal(path)


def test_a_tampered_png_is_refused(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "a.png"
    mark(image, path, origin=ORIGIN)
    path.write_bytes(path.read_bytes().replace(b">7</realgen:seed>", b">8</realgen:seed>"))
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_foreign_image_is_refused(tmp_path: Path, image: Image.Image, name: str) -> None:
    image.save(tmp_path / name)
    assert "holds no record of RealGen: it says nothing of its origin" in refusal(tmp_path / name)


def test_other_files_are_refused(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "a.gif")
    assert "is no PNG, JPEG or WebP image" in refusal(tmp_path / "a.gif")
    assert "No such file" in refusal(tmp_path / "none.png")
    assert "cannot read" in refusal(tmp_path)


def foreign(path: Path, image: Image.Image, description: str, before: str = "") -> Path:
    rdf = f'<rdf:RDF xmlns:rdf="{provenance._RDF}" xmlns:i="{provenance._IPTC}" xmlns:r="{provenance._REALGEN}">'
    image.save(path, xmp=f"{before}{rdf}{description}</rdf:RDF>".encode())
    return path


def test_another_programs_mark_is_named(tmp_path: Path, image: Image.Image) -> None:
    path = foreign(tmp_path / "a.jpg", image, f'<rdf:Description i:DigitalSourceType="{TRAINED}"/>')
    assert "its digital source type is trainedAlgorithmicMedia" in refusal(path)


def test_a_record_rewritten_by_another_program_is_read(tmp_path: Path, image: Image.Image) -> None:
    fields = 'r:version="&quot;0.1.0&quot;" r:seed="7" r:recipe="{}"'
    source = f'<i:DigitalSourceType rdf:resource="{TRAINED}"/>'
    path = foreign(tmp_path / "a.jpg", image, f"<rdf:Description {fields}>{source}</rdf:Description>", "<!-- x -->")
    assert read(path).is_ai
    assert origin_of(read(path)) == Origin(7, "0.1.0", {})


def test_a_removed_mark_shows(tmp_path: Path, image: Image.Image) -> None:
    fields = 'r:version="&quot;0.1.0&quot;" r:seed="7" r:recipe="{}"'
    assert not read(foreign(tmp_path / "a.jpg", image, f"<rdf:Description {fields}/>")).is_ai


@pytest.mark.parametrize(
    "fields",
    [
        'r:version="1"',
        'r:version="&quot;1&quot;" r:seed="true" r:recipe="{}"',
        'r:version="&quot;1&quot;" r:seed="-1" r:recipe="{}"',
        'r:version="&quot;1&quot;" r:seed="7" r:recipe="[]"',
        'r:version="&quot;1&quot;" r:seed="7" r:recipe="{}" r:prompt="3"',
        f'r:version="&quot;1&quot;" r:seed="7" r:recipe="{"[" * 20_000}"',
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, image: Image.Image, fields: str) -> None:
    assert "is damaged" in refusal(foreign(tmp_path / "a.jpg", image, f"<rdf:Description {fields}/>"))


def test_entities_are_refused(tmp_path: Path, image: Image.Image) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
    path = foreign(tmp_path / "a.jpg", image, "<rdf:Description>&b;</rdf:Description>", bomb)
    assert "XMP that cannot be read: it declares a document type" in refusal(path)
    sixteen = tmp_path / "b.jpg"
    image.save(sixteen, xmp=f"\ufeff{bomb}<x/>".encode("utf-16"))
    assert "XMP that cannot be read" in refusal(sixteen)


def make_chain(folder: Path, *, key: Any = None) -> Signer:
    """A root of its own and a leaf for document signing, as PEM files."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    root_key, key = ec.generate_private_key(ec.SECP256R1()), key or ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)

    def certificate(name: str, public: Any, *, is_root: bool) -> Any:
        names = [x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, n)]) for n in (name, "Test root")]
        usage = dict.fromkeys(
            ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"], False
        ) | {"encipher_only": False, "decipher_only": False}
        built = (
            x509.CertificateBuilder(names[1], names[0], public, x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=not is_root, key_cert_sign=is_root, crl_sign=is_root, **usage), True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), False)
        )
        if not is_root:
            built = built.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        return built.sign(root_key, hashes.SHA256())

    pem = serialization.Encoding.PEM
    chain = [certificate("Test leaf", key.public_key(), is_root=False)]
    chain.append(certificate("Test root", root_key.public_key(), is_root=True))
    (folder / "chain.pem").write_bytes(b"".join(link.public_bytes(pem) for link in chain))
    plain = serialization.PrivateFormat.TraditionalOpenSSL
    if "ed25519" in type(key).__name__.lower():
        plain = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, plain, serialization.NoEncryption()))
    return Signer(folder / "chain.pem", folder / "key.pem")


@pytest.fixture
def c2pa() -> ModuleType:
    module: ModuleType = pytest.importorskip("c2pa")
    return module


def manifest_of(c2pa: ModuleType, data: bytes, mime: str) -> tuple[str, dict[str, Any]]:
    with c2pa.Reader(mime, io.BytesIO(data)) as reader:
        found = json.loads(reader.json())
        return reader.get_validation_state(), found["manifests"][found["active_manifest"]]


@pytest.mark.parametrize(("suffix", "mime"), [(".png", "image/png"), (".jpg", "image/jpeg"), (".webp", "image/webp")])
def test_a_signed_image_verifies_and_keeps_its_mark(
    tmp_path: Path, image: Image.Image, c2pa: ModuleType, suffix: str, mime: str
) -> None:
    path = tmp_path / f"a{suffix}"
    signer = make_chain(tmp_path)
    signer.check()
    mark(image, path, origin=ORIGIN, signer=signer)
    state, manifest = manifest_of(c2pa, path.read_bytes(), mime)
    assert state == "Valid"
    action = manifest["assertions"][0]["data"]["actions"][0]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", TRAINED)
    assert origin_of(read(path)) == ORIGIN


def test_a_change_after_signing_shows(tmp_path: Path, image: Image.Image, c2pa: ModuleType) -> None:
    path = tmp_path / "a.jpg"
    mark(image, path, origin=ORIGIN, signer=make_chain(tmp_path))
    changed = path.read_bytes().replace(b">7</realgen:seed>", b">8</realgen:seed>")
    assert manifest_of(c2pa, changed, "image/jpeg")[0] == "Invalid"


@pytest.mark.usefixtures("c2pa")
def test_rsa_and_ed25519_keys_sign_too(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    make_chain(tmp_path, key=ed25519.Ed25519PrivateKey.generate()).check()
    make_chain(tmp_path, key=rsa.generate_private_key(65537, 2048)).check()


@pytest.mark.usefixtures("c2pa")
def test_a_key_that_does_not_fit_leaves_no_image(tmp_path: Path, image: Image.Image) -> None:
    (tmp_path / "other").mkdir()
    signer, other = make_chain(tmp_path), make_chain(tmp_path / "other")
    wrong = Signer(signer.certificate_chain, other.key)
    with pytest.raises(InputError, match="cannot sign with") as caught:
        mark(image, tmp_path / "a.png", origin=ORIGIN, signer=wrong)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "a.png").exists()


@pytest.mark.usefixtures("c2pa")
def test_what_is_no_key_is_one_line(tmp_path: Path) -> None:
    signer = make_chain(tmp_path)
    with pytest.raises(InputError, match="no unencrypted PEM private key"):
        Signer(signer.certificate_chain, signer.certificate_chain).check()
    with pytest.raises(InputError, match=r"cannot read .*none.pem: No such file"):
        Signer(tmp_path / "none.pem", signer.key).check()


def test_signing_without_the_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(RealGenError) as caught:
        Signer(tmp_path / "chain.pem", tmp_path / "key.pem").check()
    assert caught.value.hint == 'pip install "realgen[c2pa]"'


def test_a_text_chunk_called_xmp_is_no_mark(tmp_path: Path, image: Image.Image) -> None:
    chunks = PngInfo()
    chunks.add_text("xmp", "not a packet")
    image.save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(InputError):
        read(tmp_path / "a.png")
