"""Generated corpora and configurations end in a run or in one line; `python -m tests.fuzz` has as many as one likes."""

import resource

import pytest

from tests import fuzz

pytestmark = pytest.mark.system


@pytest.fixture(scope="module", autouse=True)
def limits():
    before = resource.getrlimit(resource.RLIMIT_AS)
    fuzz.prepare()
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("first", range(0, 40, 20))
def test_no_mistake_ends_in_a_stack_trace(tmp_path, first):
    found = list(fuzz.run_cases(3, range(first, first + 20), tmp_path))
    assert not [(number, told, fault) for number, _, told, fault in found if fault is not None]
    assert {0, 2} == {code for _, code, _, _ in found}


@pytest.mark.parametrize(
    ("code", "told", "fault"),
    [
        (0, "update 1 ...\n", False),
        (2, "nmt: data.max_length is 0; give 1 or more\n", False),
        (70, "Traceback (most recent call last):\nKeyError: 3\n", True),
        (1, "nmt: process 1 of 2 lost the others (...)\n", True),
        (-11, "", True),
        (2, "nmt: one mistake, told at length\nnmt: and another one\n", True),
        (2, "nmt: KeyError: 3\n", True),
    ],
)
def test_what_counts_as_a_fault(code, told, fault):
    assert (fuzz.fault_of(code, told) is not None) == fault
