"""The tables of mutations fit the code as it stands: each text once in its file, each test there."""

from __future__ import annotations

import re

from mutations.tables import NOTICED, PACKAGE, ROOT, SURVIVED, Mutation, Outcome, read_tables, report


def _problem(mutation: Mutation) -> str | None:
    """What is wrong with an entry, in a sentence."""
    path = ROOT / PACKAGE / mutation.file
    if not path.is_file():
        return f"{mutation.area}.yaml: there is no {mutation.file}"
    try:
        compile(mutation.apply(path.read_text()), mutation.file, "exec")
    except (ValueError, SyntaxError) as error:
        return f"{mutation.area}.yaml: {mutation.file}, {mutation.what}: {error}"
    if mutation.old == mutation.new:
        return f"{mutation.area}.yaml: {mutation.what}: nothing is changed"
    for word in mutation.words():
        file, _, test = word.partition("::")
        is_there = (ROOT / file).is_file() and re.search(rf"^def {test or 'test_'}", (ROOT / file).read_text(), re.M)
        if word.startswith("tests/") and not is_there:
            return f"{mutation.area}.yaml: {mutation.what}: there is no test {word}"
    return None


def test_every_mutation_has_its_place_and_its_tests() -> None:
    mutations = read_tables()
    assert [problem for problem in map(_problem, mutations) if problem] == []
    assert len({(mutation.file, mutation.what) for mutation in mutations}) == len(mutations)


def test_too_few_are_too_few() -> None:
    def outcomes(area: str, *results: str) -> list[Outcome]:
        return [
            Outcome(Mutation(area, "a.py", str(n), "", "", "t.py"), result, 1.0) for n, result in enumerate(results)
        ]

    most = outcomes("data", *[NOTICED] * 19, SURVIVED)
    table, is_enough = report([*most, *outcomes("index", NOTICED)])
    assert is_enough
    assert "| data | 19 | 1 | 95% |" in table
    assert "survived: a.py, 19 (t.py)" in table
    for too_few in (
        outcomes("data", *[NOTICED] * 18, SURVIVED),
        [*most, *outcomes("index", *[NOTICED] * 20, SURVIVED)],
    ):
        assert not report(too_few)[1]
