"""Evolutionary search for an architecture: rows of widths, one row a family.

Source: ZhangYuanhan-AI/NOAH, evolution.py. Every generation draws from its own random numbers, so
that a search that was stopped goes on as if it had not been.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import numpy as np

from fact_jax.errors import UserError
from fact_jax.files.schema import check_type
from fact_jax.sweep.result import Count, Generation, Width
from fact_jax.tuning.method import SearchMethod

Architecture = tuple[tuple[int, ...], ...]


class Space(NamedTuple):
    """Architectures: `families` rows of `blocks` widths, those past a depth being 0."""

    settings: SearchMethod  # its numbers
    depths: tuple[int, ...]
    families: int
    blocks: int
    count: Callable[[Architecture], int]

    def row(self, rng: np.random.Generator, start: tuple[int, ...], depth: int) -> tuple[int, ...]:
        """`start` cut to a depth, or made as long by random widths, and padded with 0."""
        more = rng.choice(self.settings.widths, max(0, depth - len(start)))
        widths = (*start[:depth], *(int(width) for width in more))
        return (*widths, *[0] * (self.blocks - len(widths)))

    def random(self, rng: np.random.Generator) -> Architecture:
        return tuple(self.row(rng, (), int(rng.choice(self.depths))) for _ in range(self.families))

    def mutate(self, rng: np.random.Generator, parent: Architecture) -> Architecture:
        """New depths for some families; widths that stay are not changed."""
        s, rows = self.settings, []
        for row in parent:
            if rng.random() < s.mutation_probability and rng.random() < s.depth_probability:
                widths = tuple(width for width in row if width)
                row = self.row(rng, widths, int(rng.choice(self.depths)))
            rows.append(row)
        return tuple(rows)

    def cross(self, rng: np.random.Generator, a: Architecture, b: Architecture) -> Architecture:
        """Takes the whole row of one of the two, for each family."""
        return tuple((x, y)[rng.integers(2)] for x, y in zip(a, b, strict=True))


class SearchState(TypedDict):
    """A search under way, as it is stored: architectures with their fitness, by generation."""

    generation: Count
    visited: list[tuple[list[list[Width]], float]]
    history: list[Generation]


def check_state(state: dict[str, Any], space: Space) -> None:
    """Raises ValueError for a stored state that no search in this space left."""
    check_type(state, SearchState)
    for architecture, _ in state["visited"]:
        if [len(row) for row in architecture] != [space.blocks] * space.families:
            raise ValueError(f"visited has an architecture of another size: {architecture!r:.60}")
    if bool(state["visited"]) != bool(state["generation"]):
        raise ValueError(f"{len(state['visited'])} visited at generation {state['generation']}")


def search(
    space: Space,
    fitness: Callable[[Architecture], float],
    seed: int,
    load: Callable[[], dict[str, Any] | None],
    save: Callable[[dict[str, Any]], None],
    *,
    on_generation: Callable[[int, float], None] = lambda done, best: None,
) -> dict[str, Any]:
    """Searches for the fittest architecture; {"best", "fitness", "parameters", "history"}.

    `save` is called after each generation, and `load` gives what it was last given, or None;
    ``on_generation(done, best)`` is told of all of them, those done before as well. The first of
    equally fit architectures is the best. Raises UserError if the limit allows none.
    """
    s = space.settings
    state = load() or {"generation": 0, "visited": []}
    visited: dict[Architecture, float] = {
        tuple(tuple(row) for row in a): value for a, value in state["visited"]
    }
    history = list(state.get("history", []))
    for i, of_generation in enumerate(history, 1):
        on_generation(i, of_generation["best"])

    for generation in range(state["generation"], s.generations):
        rng = np.random.default_rng((seed, generation))
        for candidate in _generation(space, rng, visited):
            visited[candidate] = fitness(candidate)
        if not visited:
            raise UserError(
                f"No architecture of widths {s.widths} has at most {s.limit:,} numbers. Raise the "
                "method's limit, or give it smaller widths."
            )
        best = max(visited, key=visited.__getitem__)
        history.append({"best": visited[best], "tried": len(visited)})
        save({"generation": generation + 1, "visited": list(visited.items()), "history": history})
        on_generation(generation + 1, visited[best])
    best = max(visited, key=visited.__getitem__)
    return {
        "best": best,
        "fitness": visited[best],
        "parameters": space.count(best),
        "history": history,
    }


def _generation(
    space: Space, rng: np.random.Generator, visited: dict[Architecture, float]
) -> list[Architecture]:
    """The architectures to try next: mutated parents, crossed ones, then random ones."""
    s, chosen = space.settings, list[Architecture]()
    parents = sorted(visited, key=visited.__getitem__, reverse=True)[: s.parents]

    def draw(make: Callable[[], Architecture], number: int) -> None:
        """Chooses up to `number` new legal ones, in at most ten times as many tries."""
        wanted = len(chosen) + number
        for _ in range(10 * number):
            if len(chosen) == wanted:
                break
            candidate = make()
            new = candidate not in visited and candidate not in chosen
            if new and 0 <= space.count(candidate) <= s.limit:
                chosen.append(candidate)

    def parent() -> Architecture:
        return parents[rng.integers(len(parents))]

    if parents:
        draw(lambda: space.mutate(rng, parent()), s.mutations)
        draw(lambda: space.cross(rng, parent(), parent()), s.crossovers)
    draw(lambda: space.random(rng), s.population - len(chosen))
    return chosen
