import pytest
from mutations import FAULTS, LEAST, ROOT


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.breaks)
def test_a_fault_changes_one_place_that_is_there_and_names_tests_that_are(fault):
    source = (ROOT / fault.file).read_text()
    assert source.count(fault.old) == 1
    if fault.file.endswith(".py"):
        compile(source.replace(fault.old, fault.new), fault.file, "exec")
    assert fault.test_files()


def test_there_are_as_many_faults_as_were_asked_for():
    assert len(FAULTS) == len(set(FAULTS)) >= 56
    assert LEAST >= 0.95 * len(FAULTS)
