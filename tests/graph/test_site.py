"""Sites: the address of a quantizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxquant.errors import PlanError
from fxquant.graph.site import SLOTS, Site


@given(st.text(min_size=0, max_size=20), st.sampled_from(SLOTS))
def test_a_site_reads_back_from_its_text(layer: str, slot: str) -> None:
    assert Site.parse(str(Site(layer, slot))) == Site(layer, slot)


@pytest.mark.parametrize("text", ["head", "head:", "head:bias", ":", "", "head:Input", "a:input "])
def test_a_text_that_is_no_site_is_refused(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        Site.parse(text)
    assert "fix:" in str(caught.value)


@pytest.mark.parametrize(
    ("glob", "matches"),
    [
        ("*", True),
        ("blocks.*.mlp.fc1", True),
        ("blocks.3.*", True),
        ("blocks.[0-4].mlp.*", True),
        ("*:input", True),
        ("*fc1:input", True),
        ("*:*", True),
        ("*:weight", False),
        ("blocks.3", False),
        ("Blocks.*", False),
        ("*.fc2", False),
        ("", False),
    ],
)
def test_globs_match_the_layer_or_with_a_colon_the_site(*, glob: str, matches: bool) -> None:
    assert Site("blocks.3.mlp.fc1", "input").matches(glob) == matches


def test_sites_sort_and_hash_as_values() -> None:
    sites = [Site("b", "input"), Site("a", "weight"), Site("a", "input")]
    assert [str(site) for site in sorted(sites)] == ["a:input", "a:weight", "b:input"]
    assert len({*sites, Site("b", "input")}) == 3
