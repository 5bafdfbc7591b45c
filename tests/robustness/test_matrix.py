"""What `make test-matrix` tries is what setup.cfg promises."""

import configparser
import re

from tests.robustness import matrix


def test_the_oldest_packages_are_the_lower_bounds_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(matrix.ROOT / "setup.cfg")
    wanted = dict(
        re.findall(
            r"^([a-z]+)>=([\d.]+)$",
            setup["options"]["install_requires"] + setup["options.extras_require"]["test"],
            flags=re.M,
        )
    )
    oldest = re.findall(
        r"^([a-z]+)==([\d.]+?)(?:; python_version (<|>=) .*)?$",
        matrix.VERSIONS["oldest"].read_text(),
        flags=re.M,
    )
    assert {name for name, *_ in oldest} == wanted.keys()
    assert all(version.startswith(wanted[name]) for name, version, newer in oldest if newer != ">=")
    assert setup["options"]["python_requires"] == f">={matrix.PYTHONS[0]}"


def test_a_python_that_is_not_there_is_said_to_be_missing_and_proves_nothing(capsys):
    assert matrix.main(["--pythons", "9.99"]) == 2
    shown = capsys.readouterr()
    assert "missing" in shown.out and "python9.99" in shown.err and shown.err.count("\n") == 1


def test_a_step_that_fails_is_told_by_its_last_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(matrix.shutil, "which", lambda name: "/bin/false")
    assert matrix.main(["--pythons", "3.11", "--versions", "oldest", "--place", str(tmp_path)]) == 1
    assert "FAILED  venv: exit code 1" in capsys.readouterr().out and not list(tmp_path.iterdir())
