"""Texts: how many tokens they have, and what encoders make of each, computed once. Knows no model: it is given."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

States = tuple[Tensor, ...]
"""What the text encoders make of one text, without a batch axis."""

_RECENT_TEXTS = 256


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Tokens of the whole of `text`, which a model may be too small for: it is counted, not read, so nothing warns."""
    return len(tokenizer(text, truncation=False, verbose=False).input_ids)


def knows_any(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether any letter of `text`, or any sign where it has none, is in the vocabulary: more than marks of its ends.

    Byte-level vocabularies hold every script, whatever the model learned of it.
    """
    known = tokenizer.decode(tokenizer(text, truncation=False, verbose=False).input_ids, skip_special_tokens=True)
    has_letters = any(c.isalpha() for c in text)
    return any(c.isalpha() if has_letters else not c.isspace() for c in known)


class Texts:
    """States of texts. Those to remember are kept in main memory for good, others until there are too many.

    While an encoder is being trained nothing is kept, and what is returned has gradients.
    """

    def __init__(
        self,
        encode: Callable[[list[str]], Iterable[States]],
        encoders: Sequence[nn.Module],
        *,
        device: Callable[[], torch.device],
        at_once: int,
    ) -> None:
        self._encode, self._encoders, self._device, self._at_once = encode, encoders, device, at_once
        self._kept: dict[str, States] = {}
        self._recent: dict[str, States] = {}
        self._are_away = False

    def __call__(self, texts: Sequence[str]) -> list[States]:
        """The states of each text, in order, on the device."""
        if self.are_trained:
            self._kept, self._recent = {}, {}  # of weights that will be gone
            return list(self._encode(list(texts)))
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if len(self._recent.keys() | new) > _RECENT_TEXTS:
            self._recent.clear()
        if missing := [text for text in new if text not in self._recent]:
            were_away = self._are_away
            self._bring_back()
            for chunk in self._chunks(missing):
                self._recent.update(self._computed(chunk))
            if were_away:
                self._send_away()
        return [self._found(text) for text in texts]

    def remember(self, texts: Iterable[str]) -> None:
        """Encode texts for good and move the encoders to the CPU; ValueError while an encoder is being trained.

        A text that is new afterwards brings them back for as long as its encoding takes.
        """
        if self.are_trained:
            raise ValueError("texts cannot be remembered while their encoders are being trained")
        if missing := [text for text in dict.fromkeys(texts) if text not in self._kept]:
            self._bring_back()
            for chunk in self._chunks(missing):
                computed = self._computed(chunk)
                self._kept |= {text: tuple(part.cpu() for part in states) for text, states in computed.items()}
        self._recent.clear()
        self._send_away()

    @property
    def are_trained(self) -> bool:
        """Whether an encoder is being trained."""
        return any(parameter.requires_grad for encoder in self._encoders for parameter in encoder.parameters())

    def _computed(self, texts: list[str]) -> dict[str, States]:
        # What is kept outlives sampling in inference mode, whose tensors could not be saved for a backward pass.
        with torch.inference_mode(False), torch.no_grad():
            return dict(zip(texts, self._encode(texts), strict=True))

    def _found(self, text: str) -> States:
        if (states := self._recent.get(text)) is not None:
            return states
        device = self._device()
        return tuple(part.to(device) for part in self._kept[text])

    def _bring_back(self) -> None:
        if self._are_away:
            for encoder in self._encoders:
                if not hasattr(encoder, "_hf_hook"):  # an offload hook moves it, and others out of its way
                    encoder.to(self._device())
        self._are_away = False

    def _send_away(self) -> None:
        for encoder in self._encoders:
            if all(parameter.device.type != "meta" for parameter in encoder.parameters()):  # else already offloaded
                encoder.to("cpu")
        self._are_away = True

    def _chunks(self, texts: list[str]) -> Iterable[list[str]]:
        return (texts[start : start + self._at_once] for start in range(0, len(texts), self._at_once))
