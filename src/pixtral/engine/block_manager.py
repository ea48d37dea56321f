"""Places for keys and values, in blocks: handed out, shared by reference count, found again by content (no torch).

A block is in one of three states, told by its count of references and by its key:

    in use          references > 0: in the tables of that many requests
    free, hit-able  references = 0, has a key: still holds a prefix; given away when it is the least recently used
    free            references = 0, no key: given away first

The key of a block names everything that its keys and values depend on: the key of the block before it, its own token
ids, and the content and place of the images that overlap it, since two images of one size have the same ids.
"""

from __future__ import annotations

import array
import collections
import hashlib
from collections.abc import Iterable, Sequence

from pixtral.engine.request import Request

BLOCK_SIZE = 16
ROOT = b""  # the key before the first block


def block_key(parent: bytes, ids: Sequence[int], images: Iterable[tuple[bytes, int]]) -> bytes:
    """The name of a full block.

    Args:
        parent: the key of the block before it, `ROOT` for the first one.
        ids: its tokens.
        images: key of each image that overlaps it, and where the image starts, counted from the block's start.
    """
    digest = hashlib.blake2b(parent, digest_size=16)
    digest.update(array.array("q", ids))
    for key, offset in images:
        digest.update(len(key).to_bytes(4, "little") + key + offset.to_bytes(8, "little", signed=True))
    return digest.digest()


class BlockPool:
    """Counts references of blocks and remembers what the free ones hold."""

    def __init__(self, num_blocks: int, block_size: int = BLOCK_SIZE) -> None:
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._index: dict[bytes, int] = {}
        # first come blocks that hold nothing, then the least recently used
        self._free: collections.OrderedDict[int, None] = collections.OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_blocks(self) -> int:
        """All blocks."""
        return len(self._references)

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take this many free blocks; what they hold is forgotten."""
        assert count <= len(self._free), (count, len(self._free))
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more reference to each; free ones are in use again."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each block of a table. Its end is given away before its beginning."""
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0, block
            if self._references[block] == 0:
                self._free[block] = None
                if self._keys[block] is None:
                    self._free.move_to_end(block, last=False)

    def register(self, block: int, key: bytes) -> None:
        """A block in use is full and holds what the key names. When another one holds the same, that one is found."""
        assert self._references[block] > 0 and self._keys[block] is None, block
        if key not in self._index:
            self._index[key] = block
            self._keys[block] = key

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks that hold a prefix, up to the first that is missing."""
        found = []
        for key in keys:
            block = self._index.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def count_free(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody uses."""
        return sum(self._references[block] == 0 for block in blocks)

    def grow(self, count: int) -> None:
        """Add free blocks behind the others."""
        first = len(self._references)
        self._references += [0] * count
        self._keys += [None] * count
        for block in range(first, first + count):
            self._free[block] = None

    def forget_all(self) -> None:
        """Nothing can be hit any more."""
        for block in self._index.values():
            self._keys[block] = None
        self._index.clear()

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert that the blocks of all tables, and the free ones, are all blocks, and that the index is right."""
        counted = collections.Counter(block for table in tables for block in table)
        assert [counted[block] for block in range(self.num_blocks)] == self._references
        assert set(self._free) == {block for block, count in enumerate(self._references) if count == 0}
        assert self._index == {key: block for block, key in enumerate(self._keys) if key is not None}

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._index[key]
            self._keys[block] = None


def name_blocks(request: Request, size: int, end: int) -> list[bytes]:
    """The keys of the blocks of `size` tokens that end at place `end` of a request or before."""
    keys = request.block_keys
    for index in range(len(keys), end // size):
        start, stop = index * size, (index + 1) * size
        images = [(i.key, i.start - start) for i in request.images if i.start < stop and i.end > start]
        keys.append(block_key(keys[-1] if keys else ROOT, request.ids_between(start, stop), images))
    return keys[: end // size]


def register_full(pool: BlockPool, request: Request) -> None:
    """Let the full blocks of a request be found."""
    size = pool.block_size
    full = min(request.num_computed, request.length) // size  # what a draft fills may yet be something else
    if full > request.num_registered:
        keys = name_blocks(request, size, full * size)
        for index in range(request.num_registered, full):
            pool.register(request.blocks[index], keys[index])
        request.num_registered = full


def release_table(pool: BlockPool, request: Request) -> None:
    """The request gives its blocks back."""
    pool.release(request.blocks)
    request.blocks = []
    request.num_registered = 0


def fork_table(pool: BlockPool, leader: Request, follower: Request, own: int) -> list[tuple[int, int]]:
    """A prompt that has run goes on in a second way: full blocks are shared, behind them it takes `own` new ones.

    Returns:
        (from, to) of the block whose content must be copied, if the prompt ends inside one.
    """
    full, rest = divmod(leader.num_prompt_tokens, pool.block_size)
    pool.share(leader.blocks[:full])
    follower.blocks = leader.blocks[:full] + pool.allocate(own)
    follower.block_keys = leader.block_keys[:full]
    follower.num_registered = min(leader.num_registered, full)
    follower.num_computed = leader.num_prompt_tokens
    return [(leader.blocks[full], follower.blocks[full])] if rest else []
