import pytest

from pwgf_jax.solve.files import replacing


def write(path, content, then=lambda: None):
    with replacing(path) as file:
        file.write(content)
        then()


def interrupt():
    raise KeyboardInterrupt


def test_a_file_is_replaced_only_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.npz"
    write(path, b"old")
    with pytest.raises(KeyboardInterrupt):
        write(path, b"half of the new", then=interrupt)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.npz"]


def test_what_a_kill_has_left_is_no_hindrance(tmp_path):
    (tmp_path / "a.npz.part").write_bytes(b"half")
    write(tmp_path / "a.npz", b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("name", ["a.npz", "a.npz.part"])
def test_a_link_is_replaced_and_its_target_left_alone(name, tmp_path):
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (tmp_path / name).symlink_to(target)
    write(tmp_path / "a.npz", b"new")
    assert target.read_bytes() == b"precious"
    assert (tmp_path / "a.npz").read_bytes() == b"new"
    assert not (tmp_path / "a.npz").is_symlink()
