import pytest

from drive_vlm.launch.topology import Topology, accumulation_steps, read_topology


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_a_single_process_without_a_launcher() -> None:
    assert read_topology() == Topology(0, 0, 1, 1) and read_topology().is_main


def test_ranks_of_two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert read_topology() == Topology(9, 1, 16, 8) and not read_topology().is_main


def test_half_a_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="sets RANK but not WORLD_SIZE"):
        read_topology()


@pytest.mark.parametrize(("given", "steps"), [((None, 8, 2), 1), ((64, 8, 2), 4), ((16, 8, 2), 1)])
def test_accumulation_follows_from_the_global_batch(given: tuple, steps: int) -> None:
    assert accumulation_steps(*given) == steps


@pytest.mark.parametrize("given", [(20, 8, 2), (8, 8, 2), (0, 8, 2)])
def test_a_batch_that_does_not_divide_shows_its_numbers(given: tuple) -> None:
    with pytest.raises(ValueError, match=rf"--global_batch_size {given[0]} .* 8 x 2 processes = 16"):
        accumulation_steps(*given)
