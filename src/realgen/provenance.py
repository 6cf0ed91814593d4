"""Says "made by AI" in the image file: XMP with IPTC's DigitalSourceType and RealGen's own record, C2PA given a key.

The mark is never off; prompt and text are left out where they are None. A file is written whole or not at all and
never over another one. Knows nothing of how an image is made.
"""

import contextlib
import errno
import importlib
import io
import json
import os
import re
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from realgen.core.errors import InputError, OutputError, RealGenError
from realgen.core.types import MAX_SEED, MAX_SIDE, Origin

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's word for media that a trained model made: https://cv.iptc.org/newscodes/digitalsourcetype/."""

FORMATS: Mapping[str, str] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What a file name's suffix means to Pillow."""

_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_REALGEN = "urn:realgen:ns:1.0/"
_NOT_IN_XML = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Origin):
    """What an image file says of its origin."""

    digital_source_type: str
    size: tuple[int, int]
    """Width and height in pixels that it was made with: a copy may have been resized since."""

    @property
    def is_ai(self) -> bool:
        """Whether the file says that a trained model made it."""
        return self.digital_source_type == TRAINED


class TakenError(OutputError):
    """A file of that name is there already."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs images by C2PA: a PEM chain with the signing certificate first, and its unencrypted PEM key.

    The certificate needs the key usage digitalSignature and the extended key usage emailProtection. Readers call a
    signature "trusted" only where its root is on their own list; one's own root gives a valid, untrusted signature.
    """

    certificate_chain: Path
    key: Path

    def check(self) -> None:
        """Sign a small picture in memory, so that a wrong chain or key shows before a run."""
        self.sign(_encode(Image.new("RGB", (8, 8)), "PNG", ""), "PNG", version="0")

    def sign(self, data: bytes, file_format: str, *, version: str) -> bytes:
        """The image file `data` with a signed manifest in it; any later change breaks the signature."""
        c2pa = _import("c2pa")
        algorithm, key = self._private_key()
        chain = _read_bytes(self.certificate_chain)
        info = c2pa.C2paSignerInfo(alg=algorithm.encode(), sign_cert=chain, private_key=key, ta_url=None)
        signed = io.BytesIO()
        try:
            with c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(_manifest(version))) as builder:
                builder.sign(signer, f"image/{file_format.lower()}", io.BytesIO(data), signed)
        except c2pa.C2paError as error:
            hint = "the chain starts with the certificate of this key, for digitalSignature and emailProtection"
            message = f"cannot sign with {self.certificate_chain} and {self.key}: {' '.join(str(error).split())}"
            raise InputError(message, hint=hint) from error
        return signed.getvalue()

    def _private_key(self) -> tuple[str, bytes]:
        """C2PA's name of the algorithm, and the key as PKCS#8."""
        keys, exceptions = _import("cryptography.hazmat.primitives.serialization"), _import("cryptography.exceptions")
        names = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
        try:
            key = keys.load_pem_private_key(_read_bytes(self.key), password=None)
        except (ValueError, TypeError, exceptions.UnsupportedAlgorithm) as error:
            raise InputError(f"{self.key} is no unencrypted PEM private key", hint="see openssl pkcs8") from error
        kind = type(key).__name__.lower()
        algorithm = "ed25519" if "ed25519" in kind else "ps256" if "rsa" in kind else ""
        algorithm = algorithm or names.get(getattr(getattr(key, "curve", None), "name", ""), "")
        if not algorithm:
            raise InputError(f"C2PA has no use for the key {self.key}", hint="make an EC P-256 key")
        return algorithm, key.private_bytes(keys.Encoding.PEM, keys.PrivateFormat.PKCS8, keys.NoEncryption())


def mark(
    image: Image.Image, path: Path, *, origin: Origin, signer: Signer | None = None, replace: bool = False
) -> None:
    """Save `image` as PNG, JPEG or WebP (by the suffix) with the AI mark and `origin` in it, signed last.

    Raises TakenError where `path` exists, unless `replace`; OutputError where it cannot be written.
    """
    file_format = check_suffix(path.suffix)
    try:
        data = _encode(image, file_format, packet(origin, size=image.size))
    except (OSError, ValueError, SystemError) as error:
        raise OutputError(f"cannot save {path.name} as {file_format}: {error}", hint="save it as .png") from error
    if signer is not None:
        data = signer.sign(data, file_format, version=origin.version)
    write_whole(path, data, replace=replace)


def check_suffix(suffix: str) -> str:
    """Pillow's format of a file suffix."""
    if suffix.lower() not in FORMATS:
        raise InputError(f"cannot save an image as {suffix or 'a file without suffix'}", hint=", ".join(FORMATS))
    return FORMATS[suffix.lower()]


def read(path: Path) -> Record:
    """What the image file says of its origin; InputError where it is damaged or holds no record of RealGen."""
    size, xmp = _read_xmp(path)
    properties = _properties(xmp, path) if xmp else {}
    source = properties.get(f"{{{_IPTC}}}DigitalSourceType", "")
    if f"{{{_REALGEN}}}version" not in properties:
        said = f"its digital source type is {source.rpartition('/')[2]}" if source else "it says nothing of its origin"
        raise InputError(f"{path} holds no record of RealGen: {said}", hint="give an image that realgen generate made")
    try:
        values = {name: json.loads(properties[f"{{{_REALGEN}}}{name}"]) for name in _names(properties)}
        return Record(**_checked({"size": list(size)} | values), digital_source_type=source)
    except (ValueError, KeyError, RecursionError) as error:
        raise InputError(f"the record in {path} is damaged", hint="give the file as realgen wrote it") from error


def packet(origin: Origin, *, size: tuple[int, int]) -> str:
    """The XMP packet of an image of this width and height: IPTC's mark, and each known field of `origin` as JSON."""
    values = {"version": origin.version, "seed": origin.seed, "recipe": dict(origin.recipe), "size": list(size)}
    values |= {"prompt": origin.prompt, "text": origin.text}
    lines = [
        f"   <realgen:{name}>{escape(_json(value))}</realgen:{name}>"
        for name, value in values.items()
        if value is not None
    ]
    return "\n".join(
        [
            '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>',
            f'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n <rdf:RDF xmlns:rdf="{_RDF}">',
            f'  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{_IPTC}" xmlns:realgen="{_REALGEN}"',
            '    xmlns:xmp="http://ns.adobe.com/xap/1.0/">',
            f"   <Iptc4xmpExt:DigitalSourceType>{TRAINED}</Iptc4xmpExt:DigitalSourceType>",
            f"   <xmp:CreatorTool>RealGen {escape(_NOT_IN_XML.sub('', origin.version))}</xmp:CreatorTool>",
            *lines,
            '  </rdf:Description>\n </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>',
        ]
    )


def write_whole(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a file whole or not at all; where `path` exists, replace it atomically or raise TakenError."""
    staged = path.with_name(f".{secrets.token_hex(8)}.staged")
    try:
        with staged.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            staged.replace(path)
        else:
            _place(staged, path)
    except FileExistsError as error:
        raise TakenError(f"{path} exists already", hint="nothing is overwritten: choose another name") from error
    except OSError as error:
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        hint = "free some space: what was finished is kept" if is_full else "choose another --out"
        raise OutputError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error
    finally:
        with contextlib.suppress(OSError):
            staged.unlink()


def _place(staged: Path, path: Path) -> None:
    try:
        os.link(staged, path)  # unlike a rename, this fails where the name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: hold the name first, then rename over it
        path.open("xb").close()
        try:
            staged.replace(path)
        except OSError:
            path.unlink()
            raise


def _encode(image: Image.Image, file_format: str, xmp: str) -> bytes:
    buffer = io.BytesIO()
    if file_format == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)  # uncompressed; Pillow drops `xmp=` for PNG
        image.save(buffer, "PNG", pnginfo=info)
    elif file_format == "JPEG":
        image.save(buffer, "JPEG", xmp=xmp.encode(), quality=95, subsampling=0)
    else:
        image.save(buffer, "WEBP", xmp=xmp.encode(), quality=95)
    return buffer.getvalue()


def _json(value: object) -> str:
    """JSON that any XML may hold: what XML forbids stands as an escape, everything else is readable."""
    return _NOT_IN_XML.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def _read_xmp(path: Path) -> tuple[tuple[int, int], bytes]:
    _check_readable(path)
    try:
        with Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
            image.load()
            xmp = image.info.get("xmp")
            return image.size, xmp if isinstance(xmp, bytes) else b""  # a text chunk may be called so too
    except UnidentifiedImageError as error:
        message = f"{path} is no PNG, JPEG or WebP image, or a damaged one"
        raise InputError(message, hint="give one that realgen generate made") from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged: {reason}", hint="give the file as realgen wrote it") from error


def _properties(xmp: bytes, path: Path) -> dict[str, str]:
    """Property names to their text, from elements and attributes alike; a packet that declares entities is refused."""
    try:
        root = _parse(xmp.decode("utf-8").strip("\x00\ufeff \t\r\n"))
    except (ValueError, ET.ParseError) as error:
        raise InputError(f"{path} holds XMP that cannot be read: {error}") from error
    found: dict[str, str] = {}
    for description in root.iter(f"{{{_RDF}}}Description"):
        found |= description.attrib
        found |= {child.tag: child.text or child.get(f"{{{_RDF}}}resource") or "" for child in description}
    return found


def _parse(text: str) -> ET.Element:
    if "<!DOCTYPE" in text:
        raise ValueError("it declares a document type")
    return ET.fromstring(text)  # noqa: S314 - without a document type there is no entity to expand


def _names(properties: Mapping[str, str]) -> list[str]:
    optional = [name for name in ("prompt", "text", "size") if f"{{{_REALGEN}}}{name}" in properties]
    return ["version", "seed", "recipe", *optional]


def _checked(values: Mapping[str, Any]) -> Mapping[str, Any]:
    kinds: dict[str, type] = {"version": str, "seed": int, "recipe": dict, "prompt": str, "text": str, "size": list}
    if any(type(value) is not kinds[name] for name, value in values.items()):
        raise ValueError("a field of the record has the wrong type")
    width, height = values["size"]
    if any(type(side) is not int or not 0 < side <= MAX_SIDE for side in (width, height)):
        raise ValueError("the size is no width and height")
    if not 0 <= values["seed"] <= MAX_SEED:
        raise ValueError("the seed is out of range")
    return {**values, "size": (width, height)}


def _manifest(version: str) -> dict[str, Any]:
    agent = {"name": "RealGen", "version": version}
    action = {"action": "c2pa.created", "digitalSourceType": TRAINED, "softwareAgent": agent}
    return {
        "claim_generator_info": [agent],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = "signing needs the package c2pa-python"
        raise RealGenError(message, hint='pip install "realgen[c2pa]"') from error


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint="give an existing file") from error


def _read_bytes(path: Path) -> bytes:
    _check_readable(path)
    return path.read_bytes()
