"""Blocks of the key-value cache: allocated, shared by reference count, found again by content (imports no torch).

A block is in one of three states, told by its reference count and its key:

    in use          references > 0: in the block tables of that many requests
    free, cached    references = 0, has a key: still holds a prefix; reused when it is the least recently used
    free            references = 0, no key: reused first

The key of a block hashes everything that its keys and values depend on: the key of the block before it, its own token
ids, and the content and position of the images that overlap it, since two images of one size have the same ids.
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
    """The hash of a full block.

    Args:
        parent: the key of the block before it, `ROOT` for the first one.
        ids: its tokens.
        images: key of each image that overlaps it, and where the image starts, relative to the block's start.
    """
    digest = hashlib.blake2b(parent, digest_size=16)
    digest.update(array.array("q", ids))
    for key, offset in images:
        digest.update(len(key).to_bytes(4, "little") + key + offset.to_bytes(8, "little", signed=True))
    return digest.digest()


class BlockManager:
    """Counts references of blocks, keeps the block tables of requests, and remembers what free blocks hold."""

    def __init__(self, num_blocks: int, block_size: int = BLOCK_SIZE) -> None:
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._index: dict[bytes, int] = {}
        # blocks that hold nothing first, then the least recently used
        self._free: collections.OrderedDict[int, None] = collections.OrderedDict.fromkeys(range(num_blocks))
        self._num_empty = num_blocks  # free blocks without a key

    @property
    def num_blocks(self) -> int:
        """All blocks."""
        return len(self._references)

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated."""
        return len(self._free)

    @property
    def num_empty(self) -> int:
        """Free blocks that hold nothing; allocating more evicts cached prefixes."""
        return self._num_empty

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take this many free blocks; what they hold is forgotten."""
        assert count <= len(self._free), (count, len(self._free))
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            key = self._keys[block]
            if key is not None:
                del self._index[key]
                self._keys[block] = None
            else:
                self._num_empty -= 1
            self._references[block] = 1
            taken.append(block)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to each; free ones are in use again."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
                self._num_empty -= self._keys[block] is None
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block of a table. The end of the table is reused before its beginning."""
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0, block
            if self._references[block] == 0:
                self._free[block] = None
                if self._keys[block] is None:
                    self._free.move_to_end(block, last=False)
                    self._num_empty += 1

    def register(self, block: int, key: bytes) -> None:
        """A block in use is full and holds what the key says. Where another one holds the same, that one is found."""
        assert self._references[block] > 0 and self._keys[block] is None, block
        if key not in self._index:
            self._index[key] = block
            self._keys[block] = key

    def unregister(self, blocks: Iterable[int]) -> None:
        """Make blocks in use that no other request shares unfindable."""
        for block in blocks:
            key = self._keys[block]
            if key is not None and self._references[block] == 1:
                del self._index[key]
                self._keys[block] = None

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The cached blocks of a prefix, up to the first that is missing."""
        found = []
        for key in keys:
            block = self._index.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def count_free(self, blocks: Iterable[int]) -> int:
        """How many of these blocks no request uses."""
        return sum(self._references[block] == 0 for block in blocks)

    def grow(self, count: int) -> None:
        """Add empty blocks, to be allocated before cached ones."""
        first = len(self._references)
        self._references += [0] * count
        self._keys += [None] * count
        self._num_empty += count
        for block in reversed(range(first, first + count)):
            self._free[block] = None
            self._free.move_to_end(block, last=False)

    def shrink(self, num_blocks: int) -> None:
        """Take back what `grow` added beyond this many blocks; none of them may be in use."""
        assert not any(self._references[num_blocks:])
        for block in range(num_blocks, len(self._references)):
            key = self._keys[block]
            if key is not None:
                del self._index[key]
            self._num_empty -= key is None
            del self._free[block]
        del self._references[num_blocks:], self._keys[num_blocks:]

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert that block tables and free blocks together are all blocks, and that the index is right."""
        counted = collections.Counter(block for table in tables for block in table)
        assert [counted[block] for block in range(self.num_blocks)] == self._references
        assert set(self._free) == {block for block, count in enumerate(self._references) if count == 0}
        assert self._num_empty == sum(self._keys[block] is None for block in self._free)
        assert self._index == {key: block for block, key in enumerate(self._keys) if key is not None}

    # --- block tables of requests

    def block_keys(self, request: Request, end: int) -> list[bytes]:
        """The keys of the full blocks that end at position `end` of a request or before."""
        size, keys = self.block_size, request.block_keys
        for index in range(len(keys), end // size):
            start, stop = index * size, (index + 1) * size
            images = [(i.key, i.start - start) for i in request.images if i.start < stop and i.end > start]
            keys.append(block_key(keys[-1] if keys else ROOT, request.ids_between(start, stop), images))
        return keys[: end // size]

    def register_full(self, request: Request) -> None:
        """Make the full blocks of a request findable."""
        # blocks that a draft fills may yet hold other tokens
        full = min(request.num_computed, request.length) // self.block_size
        if full > request.num_registered:
            keys = self.block_keys(request, full * self.block_size)
            for index in range(request.num_registered, full):
                self.register(request.blocks[index], keys[index])
            request.num_registered = full

    def release_table(self, request: Request) -> None:
        """Release all blocks of a request."""
        self.release(request.blocks)
        request.blocks = []
        request.num_registered = 0

    def fork_table(self, leader: Request, follower: Request, own: int) -> list[tuple[int, int]]:
        """Give a follower the prompt that its leader has run: full blocks are shared, `own` new ones come after them.

        Returns:
            (from, to) of the block whose content must be copied, if the prompt ends inside one.
        """
        full, rest = divmod(leader.num_prompt_tokens, self.block_size)
        self.share(leader.blocks[:full])
        follower.blocks = leader.blocks[:full] + self.allocate(own)
        follower.block_keys = leader.block_keys[:full]
        follower.num_registered = min(leader.num_registered, full)
        follower.num_computed = leader.num_prompt_tokens
        return [(leader.blocks[full], follower.blocks[full])] if rest else []
