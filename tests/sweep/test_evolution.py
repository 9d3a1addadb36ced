"""The evolutionary search: what it tries, what it keeps, and that it can be stopped."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fact_jax.errors import UserError
from fact_jax.sweep.evolution import Space, search

WIDTHS, DEPTHS, BLOCKS, FAMILIES = (1, 5, 10), (3, 6, 9, 12), 12, 3


def numbers(architecture):
    return sum(map(sum, architecture))


def space(count=numbers, **changes):
    search = {"population": 20, "parents": 5, "mutations": 10, "crossovers": 8, "generations": 6}
    chances = {"mutation_probability": 0.5, "depth_probability": 0.8}
    settings = SimpleNamespace(**{"widths": WIDTHS, "limit": 10**9, **search, **chances, **changes})
    return Space(settings, DEPTHS, FAMILIES, BLOCKS, count)


TARGET = np.array([[10] * 12, [5, 1] * 3 + [0] * 6, [1, 5, 10] * 3 + [0] * 3])


def toy(architecture):
    """Nearness to a target that is unlikely to be drawn: all families count alike."""
    return -float(np.abs(TARGET - np.array(architecture)).sum())


class Memory:
    """`load` and `save` through JSON, as in the work directory; may stop the search."""

    def __init__(self, stop_after=None):
        self.text, self.stop_after, self.saved = None, stop_after, 0

    def load(self):
        return None if self.text is None else json.loads(self.text)

    def save(self, state):
        self.text, self.saved = json.dumps(state), self.saved + 1
        if self.saved == self.stop_after:
            raise KeyboardInterrupt


def run(where, fitness=toy, seed=0, memory=None, told=lambda done, best: None):
    """(outcome, all architectures in the order in which they were tried)."""
    tried = []

    def spy(architecture):
        tried.append(architecture)
        return fitness(architecture)

    memory = memory or Memory()
    return search(where, spy, seed, memory.load, memory.save, on_generation=told), tried


def widths_of(row):
    return tuple(width for width in row if width)


def is_legal(architecture):
    return len(architecture) == FAMILIES and all(
        len(row) == BLOCKS
        and len(widths_of(row)) in DEPTHS
        and row == (*widths_of(row), *[0] * (BLOCKS - len(widths_of(row))))
        and set(widths_of(row)) <= set(WIDTHS)
        for row in architecture
    )


def test_only_legal_architectures_are_tried_none_twice_and_the_limit_holds():
    outcome, tried = run(space(limit=130))
    assert all(map(is_legal, tried))
    assert 120 < max(map(numbers, tried)) <= 130  # the limit itself, and not less, is what holds
    assert len(set(tried)) == len(tried) == 6 * 20
    assert [g["tried"] for g in outcome["history"]] == [20, 40, 60, 80, 100, 120]
    assert outcome["parameters"] == numbers(outcome["best"])
    lone = space(widths=(5,), generations=2, limit=45)._replace(depths=(3,))  # reached exactly
    outcome, tried = run(lone)  # it ends where nothing else is left to try
    assert tried == [((5, 5, 5, *[0] * 9),) * 3]
    assert outcome["history"] == [{"best": toy(tried[0]), "tried": 1}] * 2


def test_the_best_is_the_fittest_and_the_first_of_equals():
    outcome, tried = run(space())
    values = [toy(a) for a in tried]
    assert outcome["fitness"] == max(values)
    assert outcome["best"] == tried[values.index(max(values))]
    best = [generation["best"] for generation in outcome["history"]]
    assert best == [max(values[: 20 * (i + 1)]) for i in range(6)]
    flat, tried = run(space(), lambda architecture: 1.0)
    assert flat["best"] == tried[0]


def test_a_mutation_changes_depths_and_no_width():
    where, rng = space(), np.random.default_rng(0)
    changed = 0
    for _ in range(300):
        parent = where.random(rng)
        child = where.mutate(rng, parent)
        assert is_legal(child)
        for old, new in zip(map(widths_of, parent), map(widths_of, child), strict=True):
            shared = min(len(old), len(new))
            assert old[:shared] == new[:shared]
            changed += len(old) != len(new)
    # 0.5 x 0.8, and another depth than before: 3/4.
    assert changed / 900 == pytest.approx(0.5 * 0.8 * 0.75, abs=0.05)


@pytest.mark.parametrize("chances", [(0.0, 1.0), (1.0, 0.0)])
def test_both_probabilities_of_a_mutation_count(chances):
    names = ("mutation_probability", "depth_probability")
    where, rng = space(**dict(zip(names, chances, strict=True))), np.random.default_rng(0)
    parents = [where.random(rng) for _ in range(20)]
    assert [where.mutate(rng, parent) for parent in parents] == parents


def test_a_crossover_takes_whole_rows_of_both():
    where, rng = space(), np.random.default_rng(0)
    a, b = where.random(rng), where.random(rng)
    children = {where.cross(rng, a, b) for _ in range(200)}
    assert len(children) == 2**FAMILIES
    rows = list(zip(a, b, strict=True))
    assert all(row in pair for c in children for row, pair in zip(c, rows, strict=True))


def test_parents_are_the_best_so_far_of_all_generations(monkeypatch):
    """Also of those long ago; mutations and crossovers come from nobody else."""
    used = []
    mutate, cross = Space.mutate, Space.cross
    monkeypatch.setattr(Space, "mutate", lambda s, r, p: used.append(p) or mutate(s, r, p))
    monkeypatch.setattr(Space, "cross", lambda s, r, a, b: used.extend((a, b)) or cross(s, r, a, b))
    where, tried, best = space(generations=5), [], []

    def fitness(architecture):
        tried.append(architecture)
        # The first generation is never equalled, so that its best are the parents for ever.
        return toy(architecture) + (1000 if len(tried) <= 20 else 0)

    def on_generation(done, value):
        best.append((set(used), value))
        used.clear()

    search(where, fitness, 0, lambda: None, lambda state: None, on_generation=on_generation)
    expected = set(sorted(tried[:20], key=toy, reverse=True)[:5])
    assert best[0][0] == set()
    for parents, value in best[1:]:
        assert parents == expected
        assert value == max(map(toy, tried[:20])) + 1000


def test_a_generation_is_mutations_crossovers_and_the_rest_random(monkeypatch):
    made = {}
    for name in ("mutate", "cross", "random"):
        method = getattr(Space, name)

        def spy(*args, method=method, name=name):
            child = method(*args)
            made.setdefault(child, name)
            return child

        monkeypatch.setattr(Space, name, spy)
    _, tried = run(space(generations=2))
    names = ["random"] * 20 + ["mutate"] * 10 + ["cross"] * 8 + ["random"] * 2
    assert [made[architecture] for architecture in tried] == names


@pytest.mark.parametrize("stop_after", range(1, 7))
def test_a_search_stopped_after_any_generation_goes_on_as_if_it_had_not(stop_after):
    """It tells of the generations before, too."""
    told: list[tuple[int, float]] = []
    again: list[tuple[int, float]] = []
    whole, tried = run(space(), told=lambda *of: told.append(of))
    memory = Memory(stop_after)
    with pytest.raises(KeyboardInterrupt):
        run(space(), memory=memory)
    resumed, rest = run(space(), memory=memory, told=lambda *of: again.append(of))
    assert (resumed, again) == (whole, told)
    assert rest == tried[20 * stop_after :]  # nothing is measured twice
    assert json.loads(memory.text)["generation"] == 6
    assert run(space(), seed=1)[1] != tried


def test_a_limit_that_allows_nothing_is_said():
    with pytest.raises(UserError, match=r"widths \(1, 5, 10\) has at most 8 numbers. Raise the"):
        run(space(limit=8))
