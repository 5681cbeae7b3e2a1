"""What a run did, as data with names: an xarray.Dataset and a tidy frame, held to the arrays of its files."""

import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from pwgf_jax.experiments import ConfigError, archives
from pwgf_jax.experiments.folder import open_run
from pwgf_jax.experiments.results import Arm, dataset, tidy

xarray = pytest.importorskip("xarray")
pytest.importorskip("pandas")


def test_every_record_of_a_run_is_a_variable(finished):
    folder = open_run(finished)
    data, metrics, final = folder.to_xarray(), folder.arrays("metrics.npz"), folder.arrays("final.npz")
    assert dict(data.sizes) == {"arm": 2, "seed": 3, "step": 4}
    for key, values in metrics.items():
        arm, _, name = key.partition("/")
        found = data[name].values if name == "step" else data[name].sel(arm=arm).values
        np.testing.assert_array_equal(found, values)
    for arm in ("static", "hessian"):
        np.testing.assert_array_equal(data["final_value"].sel(arm=arm), final[f"{arm}/value"])
        assert data["status"].sel(arm=arm).values.tolist() == folder.info["arms"][arm]["status"]
        assert data["steps_taken"].sel(arm=arm).values.tolist() == final[f"{arm}/steps"].tolist()
    assert data.attrs["config_hash"] == folder.info["config_hash"]
    assert not any(isinstance(value, dict | bool | None) for value in data.attrs.values())


def test_the_data_survive_a_file(finished, tmp_path):
    pytest.importorskip("scipy")
    data = open_run(finished).to_xarray()
    data.to_netcdf(tmp_path / "run.nc", engine="scipy")
    with xarray.open_dataset(tmp_path / "run.nc", engine="scipy") as again:
        xarray.testing.assert_equal(again, data)
        assert again.attrs["name"] == "tiny"


def arm(steps, seeds=2, **varied):
    step = np.array(steps)
    records = {
        "step": step,
        "value": np.tile(1.0 / (1 + step), (seeds, 1)),
        "perturbed": np.ones((seeds, step.size), bool),
    }
    return Arm(records, np.full(seeds, 2), {"varied": varied} if varied else {})


def test_arms_of_other_steps_meet_on_all_steps_and_a_jump_is_never_made_up():
    other = arm([0, 3, 9])
    other.records["extra"] = np.zeros((2, 3))
    data = dataset({"a": arm([0, 2, 4]), "b": other}, {})
    assert data["step"].values.tolist() == [0, 2, 3, 4, 9]
    np.testing.assert_array_equal(data["value"].sel(arm="b", seed=0), [1, np.nan, 0.25, np.nan, 0.1])
    np.testing.assert_array_equal(data["perturbed"].sel(arm="a", seed=1), [1, 1, np.nan, 1, np.nan])
    assert np.isnan(data["extra"].sel(arm="a")).all()
    frame = tidy(data)
    assert len(frame) == 2 * (3 + 3)
    assert frame.groupby("arm")["step"].max().to_dict() == {"a": 4, "b": 9}


def test_what_was_varied_is_there_to_group_by():
    key = "problem.particles"
    arms = {f"pwgf-{n}": arm([0, n], arm="pwgf", key=key, value=n) for n in (50, 100)} | {"wgf": arm([0, 5])}
    arms = {name: replace(each, final=np.full(2, float(i))) for i, (name, each) in enumerate(arms.items())}
    data = dataset(arms, {"git": {"changed": False, "commit": None}})
    assert data.attrs == {"varied_key": key, "git_changed": 0}
    np.testing.assert_array_equal(data["varied"], [50, 100, np.nan])
    assert data["final_value"].groupby("method").mean(...).to_series().to_dict() == {"pwgf": 0.5, "wgf": 2.0}


@pytest.mark.parametrize("ask", ["to_xarray", "to_dataframe"])
def test_without_the_library_there_is_a_sentence(ask, finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ConfigError, match=r"need xarray: pip install 'pwgf_jax\[experiments\]'"):
        getattr(open_run(finished), ask)()


def test_a_run_without_a_finished_arm_has_no_data(finished):
    folder = open_run(finished)
    info = folder.info
    for each in info["arms"].values():
        each["finished"] = False
    folder.write_info(info)
    with pytest.raises(ConfigError, match="no arm is finished yet"):
        folder.to_xarray()


# The files


def test_an_arm_is_put_behind_the_others_whose_bytes_stay(tmp_path):
    path, rng = tmp_path / "metrics.npz", np.random.default_rng(0)
    first, second = ({"value": rng.normal(size=(2, 5)), "step": np.arange(5)} for _ in range(2))
    archives.add(path, "a", first)
    before = path.read_bytes()
    archives.add(path, "b", second)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["a/value.npy", "a/step.npy", "b/value.npy", "b/step.npy"]
        end = archive.getinfo("b/value.npy").header_offset
    assert path.read_bytes()[:end] == before[:end]
    with np.load(path) as file:  # as anybody reads it
        for name, arrays in {"a": first, "b": second}.items():
            for key, values in arrays.items():
                np.testing.assert_array_equal(file[f"{name}/{key}"], values)


def test_an_arm_that_is_run_again_is_there_once(tmp_path):
    for name, value in {"a": 1, "b": 2}.items():
        archives.add(tmp_path / "a.npz", name, {"value": np.array(value), "more": np.zeros(1)})
    archives.add(tmp_path / "a.npz", "a", {"value": np.array(3)})
    assert {key: float(value) for key, value in archives.read(tmp_path / "a.npz").items() if "more" not in key} == {
        "b/value": 2,
        "a/value": 3,
    }
    assert "a/more" not in archives.read(tmp_path / "a.npz")


def test_what_stops_the_writing_leaves_the_earlier_arms(tmp_path, monkeypatch):
    path = tmp_path / "metrics.npz"
    archives.add(path, "a", {"value": np.arange(3)})
    before = path.read_bytes()
    write = np.lib.format.write_array

    def full(*arguments, **options):
        write(*arguments, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space"):
        archives.add(path, "b", {"value": np.arange(3)})
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.npz"]
