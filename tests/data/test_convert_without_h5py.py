"""What reads and writes robomimic's files is an extra."""

import sys

from moe_robot.cli import main


def test_without_h5py_the_line_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "lift.hdf5").write_bytes(b"")
    assert main(["convert", str(tmp_path / "lift.hdf5"), str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err.strip().endswith("pip install 'moe-robot[robomimic]'")
