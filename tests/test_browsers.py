"""How tests of the page find a browser, and what happens without one."""

from pathlib import Path

import browsers
import pytest
import yaml


@pytest.fixture
def no_browser(monkeypatch, tmp_path):
    """A machine without any browser."""
    monkeypatch.setattr(browsers, "installed_browsers", lambda: [tmp_path / "chromium"])
    monkeypatch.setattr(browsers, "playwright_browser", lambda: tmp_path / "playwright" / "chrome")
    monkeypatch.delenv(browsers.REQUIRED, raising=False)
    return tmp_path


def test_an_installed_browser_comes_before_that_of_playwright(no_browser):
    (no_browser / "playwright").mkdir()
    (no_browser / "playwright" / "chrome").touch()
    assert browsers.require_browser() == no_browser / "playwright" / "chrome"
    (no_browser / "chromium").touch()
    assert browsers.require_browser() == no_browser / "chromium"


@pytest.mark.parametrize(
    ("place", "name"),
    [("Applications", browsers.MACOS[0]), ("Local", browsers.WINDOWS)],
)
def test_macos_and_windows_have_their_own_places(place, name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    assert tmp_path / place / name in browsers.installed_browsers()


@pytest.mark.usefixtures("no_browser")
def test_without_a_browser_tests_are_skipped_with_the_remedy_but_fail_in_ci(monkeypatch):
    with pytest.raises(pytest.skip.Exception, match="make browser"):
        browsers.require_browser()
    monkeypatch.setenv(browsers.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="make browser"):
        browsers.require_browser()


def test_the_workflow_of_slow_tests_installs_a_browser_and_requires_it():
    workflow = Path(__file__).parents[1] / ".github" / "workflows" / "slow.yml"
    steps = yaml.safe_load(workflow.read_text())["jobs"]["test"]["steps"]
    browser, tests = steps[-2:]
    assert browser["run"] == "make browser"
    assert (tests["run"], tests["env"]) == ("make test-slow", {browsers.REQUIRED: "1"})
