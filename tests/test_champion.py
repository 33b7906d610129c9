"""The aliases champion and previous on a real MLflow database."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sum.champion import settle, swap
from sum.cli import main
from sum.errors import DataError
from sum.registry import Registry, Version
from sum.tracking import start_run

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def registry(tracking_uri, tmp_path, monkeypatch) -> Registry:
    monkeypatch.chdir(tmp_path)
    return Registry(tracking_uri)


@pytest.fixture
def versions(registry, tracking_uri, tmp_path) -> list[Version]:
    """Three of registered model `sum`, 60, 70 and 70 % overall."""
    run = start_run(uri=tracking_uri, experiment="sum", name="ft", params={}, tags={})
    found = []
    for number, overall in enumerate((0.6, 0.7, 0.7)):
        weights = tmp_path / f"{number}.safetensors"
        weights.write_bytes(bytes([number]))
        model_id = run.log_model(weights, name="ft", fingerprint=str(number), params={})
        tags = {"overall": f"{overall:.6f}", "benchmark": "same"}
        found.append(registry.register(model_id, run_id=run.id, name="sum", tags=tags))
    return found


def crown(registry: Registry, version: Version, *, promoted: bool = True, **options: object) -> str:
    """`settle` with the tags that the version has now; returns why."""
    held = registry.client.get_model_version("sum", version.number)
    now = Version("sum", version.number, dict(held.tags))
    return settle(registry, now, promoted=promoted, reasons=["part falls"], **options).why  # type: ignore[arg-type]


def held(registry: Registry) -> tuple[str | None, str | None]:
    """Numbers at champion and previous."""
    first, second = (registry.at("sum", alias=alias) for alias in ("champion", "previous"))
    return first and first.number, second and second.number


def tags(registry: Registry, version: Version) -> dict[str, str]:
    return dict(registry.client.get_model_version("sum", version.number).tags)


def test_each_promotion_leaves_the_one_before_as_previous(registry, versions):
    for version, want in zip(versions, [("1", None), ("2", "1"), ("3", "2")], strict=True):
        for _ in range(2):  # again changes nothing
            assert crown(registry, version) == f"version {version.number} passed the gate"
            assert held(registry) == want


def test_against_the_holder_a_tie_stays_with_it(registry, versions):
    for version in (versions[1], versions[2], versions[0]):
        why = crown(registry, version, against_holder=True)
        assert held(registry) == ("2", None)
    assert why == "version 1 passed the gate, but 60.00 overall is not more than the 70.00 of version 2, which stays"


def test_figures_of_another_benchmark_hold_nobody_back(registry, versions):
    registry.tag(versions[1], key="benchmark", value="another")
    crown(registry, versions[1], against_holder=True)
    crown(registry, versions[0], against_holder=True)
    assert held(registry) == ("1", "2")


def test_a_refused_version_loses_the_crown_and_nobody_inherits_it(registry, versions):
    crown(registry, versions[0])
    crown(registry, versions[1])
    assert crown(registry, versions[1], promoted=False) == "the gate refused version 2"
    assert held(registry) == (None, "1")
    assert tags(registry, versions[1])["refused"] == "part falls"
    assert swap(registry, "sum", reason="2 is refused now").champion == registry.at("sum", alias="champion")
    assert held(registry) == ("1", None)
    crown(registry, versions[1])
    assert "refused" not in tags(registry, versions[1])


def test_rollback_and_rollback_of_it(registry, versions):
    crown(registry, versions[0])
    crown(registry, versions[1])
    assert swap(registry, "sum", reason="halos").why == "rolled back: halos"
    assert held(registry) == ("1", "2")
    assert tags(registry, versions[1])["rolled_back"] == "halos"
    assert crown(registry, versions[1]) == "version 2 was rolled back: halos"
    assert held(registry) == ("1", "2")
    swap(registry, "sum", reason="no halos")
    assert held(registry) == ("2", "1")
    assert "rolled_back" not in tags(registry, versions[1])
    assert tags(registry, versions[0])["rolled_back"] == "no halos"


def test_a_rollback_that_was_killed_in_between_can_be_given_again(registry, versions, monkeypatch):
    crown(registry, versions[0])
    crown(registry, versions[1])
    point = Registry.point

    def killed(self: Registry, name: str, *, alias: str, number: str) -> None:
        if alias == "previous":
            raise KeyboardInterrupt
        point(self, name, alias=alias, number=number)

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "point", killed)
        with pytest.raises(KeyboardInterrupt):
            swap(registry, "sum", reason="halos")
    assert held(registry) == ("1", "1")
    swap(registry, "sum", reason="halos")
    assert held(registry) == ("1", None)
    assert crown(registry, versions[1]) == "version 2 was rolled back: halos"


def test_an_override_yields_to_a_better_version_and_does_not_come_back(registry, versions):
    crown(registry, versions[0], promoted=False, override="we need it", against_holder=True)
    assert held(registry) == ("1", None)
    crown(registry, versions[1], against_holder=True)
    assert held(registry) == ("2", "1")
    why = crown(registry, versions[0], promoted=False, against_holder=True)  # the word was said before, not again
    assert why == "the gate refused version 1"
    assert held(registry) == ("2", "1")
    other = replace(versions[0], tags={**versions[0].tags, "benchmark": "another"})  # where the holder was not measured
    assert crown(registry, other, promoted=False, against_holder=True) == "the gate refused version 1"
    assert held(registry) == ("2", "1")
    crown(registry, versions[0], promoted=False, override="we do need it", against_holder=True)
    assert held(registry) == ("1", "2")


def test_a_rollback_puts_an_override_aside_and_a_second_one_brings_it_back(registry, versions):
    crown(registry, versions[0])
    crown(registry, versions[1], promoted=False, override="we need it")
    swap(registry, "sum", reason="we do not")
    crown(registry, versions[1], promoted=False)
    assert held(registry) == ("1", "2")
    swap(registry, "sum", reason="we do after all")
    assert tags(registry, versions[1])["override"] == "we need it"
    crown(registry, versions[1], promoted=False)
    assert held(registry) == ("2", "1")


def test_the_command(registry, versions, tracking_uri, monkeypatch, capsys):
    crown(registry, versions[0])
    crown(registry, versions[1])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    shutil.copy(PROJECT / "params.yaml", ".")
    assert main(["rollback", "large draws halos"]) == 0
    told = "sum: champion is version 1 again, previous is version 2; rolled back: large draws halos\n"
    assert capsys.readouterr().out == told
    assert held(registry) == ("1", "2")


def test_there_may_be_nothing_to_go_back_to(registry, versions):
    crown(registry, versions[0])
    with pytest.raises(DataError, match="'sum' has no alias 'previous'"):
        swap(registry, "sum", reason="halos")


def test_a_rollback_wants_a_reason(capsys):
    assert main(["rollback", " "]) == 2
    assert "wants a reason" in capsys.readouterr().err
