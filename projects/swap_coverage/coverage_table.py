"""Markdown tables of a sweep over the hosts' configs."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from ravlt.analysis.markdown import format_table
from sweep import HOSTS, Result, family_of

OUTCOMES = ("runs", "refused", "broken", "unavailable", "no model")


def coverage_table(results: Iterable[Result]) -> str:
    """Format one table a host, with one row a family, and list the causes.

    Args:
        results: Results, one for each config.
    """
    results = list(results)
    lines = [_summary(results), ""]
    for host in HOSTS:
        of_host = [r for r in results if r.config.startswith(f"{host}::")]
        rows = (
            [family.partition("::")[2], *(counts[o] or "" for o in OUTCOMES)]
            for family, counts in sorted(_count(of_host).items())
        )
        lines += [f"## {host}", "", format_table(["family", *OUTCOMES], rows), ""]
    for outcome, title in (
        ("broken", "Broken"),
        ("refused", "Refused, and why"),
        ("unavailable", "Not run here as they are, and why"),
    ):
        lines += [f"## {title}", "", *_causes(results, outcome), ""]
    return "\n".join(lines).rstrip()


def _summary(results: list[Result]) -> str:
    counts = Counter(r.outcome for r in results)
    parts = [f"{counts[outcome]} {outcome}" for outcome in OUTCOMES]
    fit = counts["runs"] + counts["broken"]
    share = counts["runs"] / fit if fit else 0
    return (
        f"{len(results)} configs: {', '.join(parts)}. Of those with a pyramid that run "
        f"here as they are, {share:.1%} run with RAVLT."
    )


def _count(results: list[Result]) -> dict[str, Counter]:
    counts: dict[str, Counter] = defaultdict(Counter)
    for result in results:
        counts[family_of(result.config)][result.outcome] += 1
    return counts


def _causes(results: list[Result], outcome: str) -> list[str]:
    causes: dict[str, Counter] = defaultdict(Counter)
    for result in results:
        if result.outcome == outcome:
            causes[result.detail][family_of(result.config)] += 1
    lines = []
    for cause, families in sorted(causes.items()):
        named = ", ".join(f"{name} ({n})" for name, n in sorted(families.items()))
        lines.append(f"- {cause.rstrip('.')}. In {named}.")
    return lines or ["None."]
