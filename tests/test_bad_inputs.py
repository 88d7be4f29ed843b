"""Whatever is handed in wrongly is refused by name, and nothing is left behind."""

from pathlib import Path

import pytest

from fxquant.errors import FxquantError
from tests.bad_inputs import artifacts, data, models, plans, settings
from tests.bad_inputs.place import Case, Place

TABLE = [
    case
    for cases in (models.CASES, data.CASES, settings.CASES, plans.CASES, artifacts.CASES)
    for case in cases.table.values()
]


def test_the_suite_holds_a_hundred_bad_inputs_and_more() -> None:
    assert len(TABLE) >= 100
    assert len({case.name for case in TABLE}) == len(TABLE)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name.replace(" ", "-"))
def test_a_bad_input_is_refused_with_what_and_how_to_go_on(case: Case, tmp_path: Path) -> None:
    place = Place(tmp_path)
    call = case.prepare(place)
    states, files = place.states(), place.contents()
    with pytest.raises(FxquantError) as caught:
        call()
    error = caught.value
    assert isinstance(error, case.error), repr(error)
    assert error.what
    assert "\n" not in error.what
    assert error.where or error.why or error.fix
    assert "Traceback" not in str(error)
    assert 'File "' not in str(error)
    assert place.states() == states
    assert place.contents() == files
