"""Make conversations from the blocks of conversations.txt."""

import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

Turns = list[str]

_LONGEST_CHAIN = 4


@dataclass(frozen=True, kw_only=True)
class Block:
    """One exchange: per turn the alternatives, beginning with the user's."""

    section: str
    turns: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Script:
    blocks: list[Block]
    fillings: dict[str, list[str]]
    system_prompts: list[str]


def read_script(path: Path) -> Script:
    """Parse the format that conversations.txt explains in its first lines."""
    blocks: list[Block] = []
    fillings: dict[str, list[str]] = {}
    system_prompts: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        marker, text = line[:1], line[1:].strip()
        if marker == "[":
            blocks.append(Block(section=text.rstrip("]")))
        elif marker in (">", "<"):
            _add_alternative(blocks[-1], text, is_user=marker == ">")
        elif marker == "@":
            name, _, values = text.partition(" ")
            fillings[name] = [value.strip() for value in values.split(",")]
        elif marker == "!":
            system_prompts.append(text)
    return Script(blocks=blocks, fillings=fillings, system_prompts=system_prompts)


def write_conversations(script: Script, *, count: int, rng: random.Random) -> list[Turns]:
    """Chain random blocks to `count` conversations.

    Every block opens equally many of them, so that each first question is met about as often.
    """
    by_section = defaultdict(list)
    for block in script.blocks:
        by_section[block.section].append(block)
    middle = [b for b in script.blocks if b.section not in ("greeting", "farewell")]
    conversations = []
    for index in range(count):
        chain = [script.blocks[index % len(script.blocks)]]
        if chain[0].section != "farewell":
            chain += rng.sample(middle, rng.choice((0, 0, 1, 2, _LONGEST_CHAIN - 1)))
            if rng.random() < 0.15:
                chain.append(rng.choice(by_section["farewell"]))
        conversations.append([turn for block in chain for turn in _fill(block, script, rng)])
    return conversations


def _add_alternative(block: Block, text: str, *, is_user: bool) -> None:
    users_turn_is_open = len(block.turns) % 2 == 1
    if is_user != users_turn_is_open:
        block.turns.append([])
    block.turns[-1].append(text)


def _fill(block: Block, script: Script, rng: random.Random) -> Turns:
    chosen = {name: rng.choice(values) for name, values in script.fillings.items()}
    # A block of several exchanges may end after any of them.
    length = 2 * rng.randint(1, len(block.turns) // 2)
    turns = []
    for index, alternatives in enumerate(block.turns[:length]):
        text = rng.choice(alternatives)
        for name, value in chosen.items():
            text = text.replace(f"{{{name}}}", value)
        is_user = index % 2 == 0
        turns.append(_typed_carelessly(text, rng) if is_user else text[0].upper() + text[1:])
    return turns


def _typed_carelessly(text: str, rng: random.Random) -> str:
    """People leave out capitals and full stops when they chat; the model should not mind."""
    if rng.random() < 0.2:
        text = text.rstrip(".!?") or text
    if rng.random() < 0.2:
        text = text.lower()
    return text
