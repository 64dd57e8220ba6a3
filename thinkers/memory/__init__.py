"""A memory that outlives a run: blocks of compressed text on disk, found again by their keys."""

from thinkers.memory.memory import LongTermMemory as LongTermMemory
