"""Inverted lists against brute force; ties, sizes, selections, and files damaged at every byte."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch

from thinkers.errors import DamagedError, FormatError, NonFiniteError, UsageError
from thinkers.memory import kmeans, lists, scores
from thinkers.memory.lists import Lists
from thinkers.memory.scores import merge, score_keys


def unit(array):
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def clustered(n, d, clusters=11, seed=0):
    """Unit keys in loose clusters, in float16, and queries near some of them."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((clusters, d))
    keys = centres[random.integers(0, clusters, n)] + 0.8 * random.standard_normal((n, d))
    keys = unit(keys).astype(np.float16)
    near = keys[random.integers(0, n, 29)].astype(np.float32)
    return keys, unit(near + 0.6 / d**0.5 * random.standard_normal((29, d)))


def brute_force(keys, ids, queries, k, allowed=None):
    """The best k ids by the maximum over their keys, one key at a time, ties by lower id."""
    found = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, np.float32)
    for row, query in enumerate(queries.astype(np.float64)):
        best = {}
        for number, key in zip(ids.tolist(), keys.astype(np.float64), strict=True):
            if allowed is None or number in allowed:
                best[number] = max(best.get(number, -np.inf), float(np.float32(key @ query)))
        for rank, number in enumerate(sorted(best, key=lambda x: (-best[x], x))[:k]):
            found[0][row, rank], found[1][row, rank] = number, best[number]
    return found


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def ids_of(n, per_id, seed=3):
    """Ids in random order, far apart, each of `per_id` keys but for the last."""
    numbers = 7 * (np.arange(n) // per_id) + 2
    return np.random.default_rng(seed).permutation(numbers)


@pytest.mark.parametrize(
    "n, d, per_id, k, num_lists",
    [
        (211, 13, 1, 5, 1),
        (211, 13, 1, 5, 17),
        (211, 8, 3, 4, 17),
        (53, 3, 2, 60, 5),
        (53, 3, 2, 27, 53),
        (1, 5, 1, 3, 1),
        (2, 1, 2, 1, 2),
        (19, 7, 19, 2, 4),
    ],
)
def test_all_lists_give_what_brute_force_gives(n, d, per_id, k, num_lists):
    keys, queries = clustered(n, d)
    ids = ids_of(n, per_id)
    index = Lists.build(keys, ids, num_lists=num_lists)
    expected = brute_force(keys, ids, queries, k)
    assert equal(index.search(queries, k), expected)
    assert equal(index.search(queries, k, probes=num_lists), expected)
    assert (len(index), index.dim, index.num_lists) == (n, d, num_lists)
    assert index.keys_per_id == per_id and index.num_ids == len(set(ids.tolist()))


def test_no_keys_find_nothing():
    index = Lists.build(np.zeros((0, 3), np.float16), np.zeros(0, np.int64))
    ids, scores = index.search(unit(np.ones((2, 3))), 2)
    assert (ids == -1).all() and (scores == -np.inf).all() and ids.shape == scores.shape == (2, 2)
    assert index.search(np.zeros((0, 3), np.float32), 2)[0].shape == (0, 2)


@pytest.mark.parametrize("num_lists", [1, 6])
def test_equal_keys_are_found_by_lower_id(num_lists):
    keys, queries = clustered(23, 9)
    copies = np.tile(keys, (5, 1))
    ids = np.random.default_rng(1).permutation(115)
    index = Lists.build(copies, ids, num_lists=num_lists)
    assert equal(index.search(queries, 12), brute_force(copies, ids, queries, 12))
    same = Lists.build(np.tile(keys[:1], (115, 1)), ids, num_lists=num_lists)
    assert same.search(queries, 7)[0].tolist() == [list(range(7))] * 29


def test_keys_one_bit_apart_are_ranked_by_their_exact_scores():
    """The first pass, in float32, cannot tell many of these keys apart."""
    random = np.random.default_rng(0)
    key = unit(random.standard_normal(64)).astype(np.float16)
    keys = np.tile(key, (300, 1))
    bits = keys.view(np.uint16)
    bits[np.arange(300), random.integers(0, 64, 300)] += random.integers(0, 2, 300).astype(
        np.uint16
    )
    queries = unit(key + 0.01 * random.standard_normal((5, 64)))
    ids = random.permutation(300)
    found = Lists.build(keys, ids).search(queries, 40)
    assert equal(found, brute_force(keys, ids, queries, 40))


@pytest.mark.parametrize("per_id", [1, 3])
def test_a_row_does_not_depend_on_the_others(per_id, monkeypatch):
    keys, queries = clustered(1999, 16)
    index = Lists.build(keys, ids_of(1999, per_id), num_lists=40)
    together = index.search(queries, 6, probes=3)
    for row in range(29):
        alone = index.search(queries[row : row + 1], 6, probes=3)
        assert equal(alone, [x[row : row + 1] for x in together])
    assert equal(index.search(queries[::-1].copy(), 6, probes=3), [x[::-1] for x in together])
    sizes = (lists, "ROWS", 4), (lists, "SCORES", 1), (lists, "BLOCK", 7), (scores, "BLOCK", 7)
    for module, name, value in sizes:
        monkeypatch.setattr(module, name, value)
        assert equal(index.search(queries, 6, probes=3), together)


def test_the_score_of_a_key_does_not_depend_on_the_other_keys():
    random = np.random.default_rng(0)
    for d in (1, 2, 7, 8, 31, 64, 200):
        keys, query = random.standard_normal((37, d)), random.standard_normal(d).astype(np.float32)
        keys = keys.astype(np.float16)
        alone = np.concatenate([score_keys(keys[i : i + 1], query) for i in range(37)])
        assert np.array_equal(score_keys(keys, query), alone)
        assert np.array_equal(score_keys(keys[5:], query), alone[5:])


def test_scores_of_ids_found_count_keys_of_lists_that_were_not_searched():
    keys, queries = clustered(601, 10)
    ids = ids_of(601, 4)
    index = Lists.build(keys, ids, num_lists=20)
    exact = brute_force(keys, ids, queries, 151)
    found, scores = index.search(queries, 5, probes=1)
    for row in range(29):
        truth = dict(zip(exact[0][row].tolist(), exact[1][row].tolist(), strict=True))
        assert [truth[x] for x in found[row].tolist()] == scores[row].tolist()
        assert len(set(found[row].tolist())) == 5


@pytest.mark.parametrize("per_id", [1, 4])
def test_more_lists_are_searched_where_few_keys_are_in_the_closest(per_id):
    keys, queries = clustered(101, 6)
    ids = ids_of(101, per_id)
    index = Lists.build(keys, ids, num_lists=50)
    count = len(set(ids.tolist()))
    found, _ = index.search(queries, count + 3, probes=1)
    assert (np.sort(found[:, :count]) == np.unique(ids)).all() and (found[:, count:] == -1).all()


@pytest.mark.parametrize("num_lists, probes", [(1, None), (15, None), (15, 15)])
def test_only_allowed_ids_are_found(num_lists, probes):
    keys, queries = clustered(211, 9)
    ids = ids_of(211, 2)
    index = Lists.build(keys, ids, num_lists=num_lists)
    for allowed in ([], [int(ids[4])], np.unique(ids)[::3], np.unique(ids)[20:60], ids, [3, -1]):
        allowed = np.array(allowed, np.int64)
        expected = brute_force(keys, ids, queries, 7, set(allowed.tolist()))
        assert equal(index.search(queries, 7, probes, allowed), expected)
        assert equal(index.search(queries, 7, probes, index.select(allowed)), expected)


def test_few_probes_reach_allowed_ids_that_are_far_from_the_query():
    keys = np.eye(8, dtype=np.float16)[np.repeat(np.arange(8), 25)]
    index = Lists.build(keys, np.arange(200), num_lists=8)
    found, scores = index.search(np.eye(8, dtype=np.float32)[:1], 30, 1, np.arange(150, 200))
    assert set(found[0].tolist()) == set(range(150, 180)) and (scores == 0).all()


def test_two_results_are_merged():
    keys, queries = clustered(97, 6)
    keys[50:90] = keys[10:50]
    ids = np.random.default_rng(2).permutation(97)
    parts = [Lists.build(keys[a:b], ids[a:b]).search(queries, 9) for a, b in ((0, 93), (93, 97))]
    assert equal(merge(*parts, 9), brute_force(keys, ids, queries, 9))


def test_many_keys_are_sorted_into_lists(monkeypatch):
    monkeypatch.setattr(lists, "EXACT", 2000)
    keys, _ = clustered(2500, 16, clusters=300)
    ids = np.arange(2500)
    index = Lists.build(keys, ids)
    assert index.num_lists == 100 and Lists.build(keys[:2000], ids[:2000]).num_lists == 1
    _, queries = clustered(2500, 16, clusters=300)
    expected = brute_force(keys, ids, queries, 10)[0]
    found, _ = index.search(queries, 10)
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, expected, strict=True)])
    assert 0.94 <= share < 1 and index.probes < 60


def test_as_many_lists_are_searched_as_hold_the_neighbours_of_a_sample(monkeypatch):
    wide = unit(np.random.default_rng(0).standard_normal((3000, 12))).astype(np.float16)
    spread, loose = (
        Lists.build(keys, np.arange(3000), num_lists=60)
        for keys in (wide, clustered(3000, 12, 60)[0])
    )
    assert spread.probes > loose.probes > 2
    assert all(kmeans.RECALL <= x.recall < kmeans.RECALL + 0.02 for x in (spread, loose))
    monkeypatch.setattr(kmeans, "RECALL", 0.01)
    easy = Lists.build(wide, np.arange(3000), num_lists=65)
    assert easy.probes == 3, "one list in 32, however easy the sample"


def test_an_index_is_a_function_of_keys_and_seed_at_any_number_of_threads():
    keys, _ = clustered(5000, 16)
    images = []
    for seed, threads in ((0, 1), (0, 2), (5, 1)):
        torch.set_num_threads(threads)
        try:
            images.append(Lists.build(keys, np.arange(5000), seed, 0, 64)._parts.image)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_float32_keys_are_kept_in_float16():
    keys, queries = clustered(31, 5)
    wide = unit(keys.astype(np.float32) + 0.01)
    index = Lists.build(wide, np.arange(31))
    expected = brute_force(wide.astype(np.float16), np.arange(31), queries, 4)
    assert equal(index.search(queries, 4), expected)


def test_keys_may_be_read_only_and_of_any_layout():
    keys, queries = clustered(60, 5)
    expected = Lists.build(keys[::-2].copy(), np.arange(30), num_lists=4).search(queries, 4)
    keys.setflags(write=False)
    for view in (keys[::-2], np.asfortranarray(keys[::-2])):
        assert equal(Lists.build(view, np.arange(30), num_lists=4).search(queries, 4), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0, 1.2])
@pytest.mark.parametrize("num_lists", [1, 3])
def test_keys_that_are_not_finite_or_not_of_unit_length_are_refused(value, num_lists):
    keys = np.zeros((7, 3), np.float32)
    keys[:, 0] = 1
    keys[5, 0] = value
    with pytest.raises(DamagedError, match="unit length, got .* at 5"):
        Lists.build(keys, np.arange(7), num_lists=num_lists)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_queries_that_are_not_finite_are_refused(value):
    keys, queries = clustered(7, 3)
    queries[4] = value
    with pytest.raises(NonFiniteError, match="query 4"):
        Lists.build(keys, np.arange(7)).search(queries, 2)


def test_arguments_that_do_not_fit_are_refused():
    keys, queries = clustered(7, 3)
    ids = np.arange(7)
    for bad in (keys[0], keys.astype(np.float64), keys[:, :0], keys.tolist()):
        with pytest.raises(UsageError, match="keys"):
            Lists.build(bad, ids)
    for bad in (ids[1:], ids - 1, ids.astype(np.int32), ids[None]):
        with pytest.raises(UsageError, match="ids"):
            Lists.build(keys, bad)
    index = Lists.build(keys, ids)
    for bad in (queries[0], queries[:, :2], queries.astype(np.float64)):
        with pytest.raises(UsageError, match="queries"):
            index.search(bad, 2)
    for bad in ({"k": 0}, {"k": True}, {"k": 1, "probes": 0}):
        with pytest.raises(UsageError):
            index.search(queries, **bad)


# Files


def small(tmp_path):
    keys, queries = clustered(5, 3)
    index = Lists.build(keys, np.array([3, 1, 3, 9, 4]), generation=12, num_lists=2)
    path = tmp_path / "blocks.lists"
    index.save(path)
    return index, path, queries


def test_a_saved_index_is_the_same_index(tmp_path):
    index, path, queries = small(tmp_path)
    again = Lists.load(path)
    assert equal(again.search(queries, 3), index.search(queries, 3))
    for name in ("generation", "probes", "recall", "keys_per_id", "num_lists", "dim"):
        assert getattr(again, name) == getattr(index, name), name
    assert again.generation == 12 and [x.name for x in tmp_path.iterdir()] == [path.name]
    again.save(path)
    assert Lists.load(path).generation == 12


@pytest.mark.parametrize("flip", [lambda at: 1 << at % 8, lambda at: 255], ids=["bit", "byte"])
def test_a_flip_of_any_byte_is_found(tmp_path, flip):
    _, path, _ = small(tmp_path)
    content = path.read_bytes()
    assert len(content) == 384
    with path.open("r+b", buffering=0) as file:
        for at, byte in enumerate(content):
            os.pwrite(file.fileno(), bytes([byte ^ flip(at)]), at)
            with pytest.raises(DamagedError, match="blocks.lists is not the index"):
                Lists.load(path)
            os.pwrite(file.fileno(), bytes([byte]), at)
    assert len(Lists.load(path)) == 5


def test_files_of_another_size_are_found(tmp_path):
    _, path, _ = small(tmp_path)
    content = path.read_bytes()
    for size in (*range(0, 384, 7), 127, 128, 129, 383):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError):
            Lists.load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(DamagedError, match="asks for 384 bytes, and it has 385"):
        Lists.load(path)


def with_header(content, **changes):
    """Content whose header is written anew, with a CRC that holds."""
    names = ("magic", "format", "d", "lists", "n")
    fields = dict(zip(names, struct.unpack_from("<8sIIQQ", content), strict=True)) | changes
    header = struct.pack("<8sIIQQ", *fields.values()) + content[32:124]
    return header + struct.pack("<I", zlib.crc32(header)) + content[128:]


def test_headers_whose_sizes_do_not_fit_are_refused_before_anything_is_allocated(tmp_path):
    _, path, _ = small(tmp_path)
    content = path.read_bytes()
    assert with_header(content) == content
    for change in ({"n": 2**60}, {"n": 4, "d": 2**31}, {"lists": 2**63}, {"d": 0}, {"lists": 0}):
        path.write_bytes(with_header(content, **change))
        with pytest.raises(DamagedError):
            Lists.load(path)


def test_an_index_of_another_format_is_named(tmp_path):
    _, path, _ = small(tmp_path)
    path.write_bytes(with_header(path.read_bytes(), format=2))
    with pytest.raises(FormatError, match="has format 2, .* reads 1"):
        Lists.load(path)


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Lists.load(tmp_path / "none")
    with pytest.raises(DamagedError, match="plain file"):
        Lists.load(tmp_path)
    (tmp_path / "link").symlink_to(small(tmp_path)[1])
    with pytest.raises(DamagedError, match="link"):
        Lists.load(tmp_path / "link")
