"""Parses the Markdown pages of the repository: headings, links, and code blocks, which tests find by heading."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[2]
GUIDES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
# Page -> the test file that runs its blocks, and the number of blocks.
TESTED_ELSEWHERE = {"docs/your_own_task.md": ("tests/training/test_your_own_task.py", 2)}
FENCE = re.compile(r" *```(\w*)")
HEADING = re.compile(r"#+ (.*)")
LINK = re.compile(r"\[(?:[^\]\[]|!\[[^\]]*\]\([^)]*\))*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced code block of a page, under its nearest heading."""

    page: str
    heading: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.heading}"


@dataclass(frozen=True)
class Page:
    """A Markdown file: its headings, its code blocks, and its prose without them."""

    headings: list[str]
    blocks: list[Block]
    prose: str

    @property
    def anchors(self) -> set[str]:
        """The anchors that GitHub gives the headings."""
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in self.headings}

    @property
    def links(self) -> list[str]:
        return LINK.findall(re.sub(r"`[^`]*`", "", self.prose))


def read_page(name: str) -> Page:
    """Parse a page, given its path relative to the repository."""
    headings, blocks, prose, language, lines = [""], [], [], None, []
    for line in (REPOSITORY / name).read_text().splitlines():
        fence, heading = FENCE.match(line), HEADING.match(line)
        if language is not None and fence:
            indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
            text = "".join(f"{line[indent:]}\n" for line in lines) if language else "\n".join(lines)
            blocks.append(Block(name, headings[-1], language, text))
            language = None
        elif language is not None:
            lines.append(line)
        elif fence:
            language, lines = fence[1], []
        else:
            prose.append(line)
            if heading:
                headings.append(heading[1])
    assert language is None, f"{name} ends within a code block"
    return Page(headings[1:], blocks, "\n".join(prose))


def find_block(page: str, heading: str, language: str) -> Block:
    """The only code block of a language under a heading."""
    [block] = [block for block in read_page(page).blocks if (block.heading, block.language) == (heading, language)]
    return block


def all_blocks(language: str | None = None) -> list[Block]:
    """The code blocks of README.md, CONTRIBUTING.md and docs/, of one language or all, without `TESTED_ELSEWHERE`."""
    blocks = [block for name in GUIDES if name not in TESTED_ELSEWHERE for block in read_page(name).blocks]
    return [block for block in blocks if language in (None, block.language)]


@dataclass(frozen=True)
class Command:
    """A command of a bash block: its words, and the environment variables that are set before them."""

    block: Block
    words: list[str]
    environment: dict[str, str]

    def __str__(self) -> str:
        return f"{self.block}: {' '.join(self.words[:3])}"


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a bash block, one per line after continued lines are joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        first = next((place for place, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
        if words:
            yield Command(block, words[first:], dict(word.split("=", 1) for word in words[:first]))


def paths_of_map(text: str) -> Iterator[Path]:
    """The files and folders that an indented map of the repository names."""
    folders = []  # (indentation, folder)
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= indent:
            folders.pop()
        parent = folders[-1][1] if folders else REPOSITORY
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        yield from (parent / name for name in names)
        if names[0].endswith("/"):
            folders.append((indent, parent / names[0]))
