"""How a prompt is put to a language model: the instruction, then the person's words."""

from importlib import resources


def shipped_instruction() -> str:
    """The instruction in the package."""
    return (resources.files("realgen") / "prompts" / "rewrite.md").read_text(encoding="utf-8").strip()


def messages(instruction: str, prompt: str, *, has_system: bool = True) -> list[dict[str, str]]:
    """A chat of one question; without a system role the instruction goes before the prompt."""
    if has_system:
        return [{"role": "system", "content": instruction}, {"role": "user", "content": prompt}]
    return [{"role": "user", "content": f"{instruction}\n\n{prompt}"}]
