"""The page in a real Chromium: with the keyboard alone, with a key, with a file and with a microphone."""

import shutil
import time

import numpy as np
import pytest
import soundfile
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys as Press
from selenium.webdriver.support.ui import Select, WebDriverWait

from specialize.serve.audio import AudioDecoder
from specialize.serve.keys import KeyFile, Keys
from specialize.serve.recognizer import Recognizer
from specialize.serve.service import Service
from tests.serve.services import listening
from tests.serve.stores import SPEC, clips, store_of, talking

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its driver here")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    base = talking()
    store = store_of(tmp_path_factory.mktemp("store"), base, 3)
    service = Service(Recognizer(base, store), store, AudioDecoder(), lengths=(1.0,))
    service.warm([SPEC])
    yield service
    service.close()


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "speech.wav"
    soundfile.write(path, clips(1)[0], 16_000)
    return path


@pytest.fixture(scope="module")
def browser(recording):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "use-fake-ui-for-media-stream",
        "use-fake-device-for-media-stream",
        f"use-file-for-fake-audio-capture={recording}",
        "window-size=1000,1100",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def until(browser, condition, seconds=30):
    return WebDriverWait(browser, seconds, 0.05).until(lambda _: condition())


def at(browser, id_):
    return browser.find_element(By.ID, id_)


def text_of(browser, id_):
    return at(browser, id_).text


def heard(browser) -> tuple[str, str]:
    until(browser, lambda: text_of(browser, "status") == "Done.")
    return text_of(browser, "base-text"), text_of(browser, "own-text")


def said(service, path, speaker):
    clip, _ = soundfile.read(path, dtype="float32")
    return service.recognizer.transcribe(np.asarray(clip), speaker=speaker).strip() or "(nothing)"


def test_a_file_is_heard_by_both_and_differences_are_marked(browser, service, recording):
    with listening(service) as address:
        browser.get(address)
        until(browser, lambda: at(browser, "speaker").is_enabled())
        assert not at(browser, "key-field").is_displayed()
        assert not at(browser, "send").is_enabled()
        choice = Select(at(browser, "speaker"))
        assert [option.text for option in choice.options] == ["s0", "s1", "s2"]
        choice.select_by_visible_text("s1")
        at(browser, "file").send_keys(str(recording))
        until(browser, lambda: at(browser, "send").is_enabled())
        at(browser, "send").click()
        base, own = heard(browser)
        expected = said(service, recording, None), said(service, recording, "s1")
        assert (base.split(), own.split()) == (expected[0].split(), expected[1].split())
        assert base != own
        marked = browser.find_elements(By.CSS_SELECTOR, "#own-text ins, #base-text del")
        assert marked
        assert "differ" in text_of(browser, "summary")
        assert browser.switch_to.active_element.get_attribute("id") == "result-title"
        wrong = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not wrong, wrong


def test_the_keyboard_alone_is_enough(browser, service, recording):
    with listening(service) as address:
        browser.get(address)
        until(browser, lambda: at(browser, "speaker").is_enabled())
        at(browser, "file").send_keys(str(recording))
        until(browser, lambda: at(browser, "send").is_enabled())
        browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
        reached = []
        for _ in range(12):
            webdriver.ActionChains(browser).send_keys(Press.TAB).perform()
            reached.append(browser.switch_to.active_element.get_attribute("id"))
            if reached[-1] == "send":
                break
        assert [id_ for id_ in reached if id_ in ("speaker", "record", "file", "send")] == [
            "speaker",
            "record",
            "file",
            "send",
        ]
        webdriver.ActionChains(browser).send_keys(Press.ENTER).perform()
        heard(browser)


def test_a_key_is_asked_for(browser, service, recording, tmp_path):
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("clinic", ("s2",))
    with listening(service, keys=Keys(file.path)) as address:
        browser.get(address)
        until(browser, lambda: at(browser, "key-field").is_displayed())
        assert browser.switch_to.active_element.get_attribute("id") == "key"
        at(browser, "key").send_keys("sk-wrong", Press.ENTER)
        until(browser, lambda: "not valid" in text_of(browser, "trouble"))
        at(browser, "key").clear()
        at(browser, "key").send_keys(key, Press.ENTER)
        until(browser, lambda: at(browser, "speaker").is_enabled())
        assert [option.text for option in Select(at(browser, "speaker")).options] == ["s2"]
        at(browser, "file").send_keys(str(recording))
        until(browser, lambda: at(browser, "send").is_enabled())
        at(browser, "send").click()
        heard(browser)


def test_the_microphone(browser, service):
    with listening(service) as address:
        browser.get(address)
        until(browser, lambda: at(browser, "speaker").is_enabled())
        at(browser, "record").click()
        until(browser, lambda: text_of(browser, "time") not in ("", "0.0 s"))
        assert at(browser, "record").get_attribute("aria-pressed") == "true"
        time.sleep(0.7)
        at(browser, "record").click()
        until(browser, lambda: at(browser, "send").is_enabled())
        assert at(browser, "listen").is_displayed()
        at(browser, "send").click()
        heard(browser)


def test_trouble_is_told(browser, service, tmp_path):
    rubbish = tmp_path / "a.wav"
    rubbish.write_bytes(b"no audio at all")
    with listening(service) as address:
        browser.get(address)
        until(browser, lambda: at(browser, "speaker").is_enabled())
        at(browser, "file").send_keys(str(rubbish))
        until(browser, lambda: at(browser, "send").is_enabled())
        at(browser, "send").click()
        until(browser, lambda: text_of(browser, "trouble"))
        assert at(browser, "trouble").get_attribute("role") == "alert"
        assert not at(browser, "result").is_displayed()


def test_everything_has_a_name_for_a_screen_reader(browser, service):
    with listening(service) as address:
        browser.get(address)
        until(browser, lambda: at(browser, "speaker").is_enabled())
        tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = ("button", "combobox", "textbox", "StaticText", "heading", "timer")
    nodes = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if not n["ignored"]]
    controls = [(role, name) for role, name in nodes if role in roles[:3]]
    assert controls
    assert all(name for _, name in controls), controls
    assert ("combobox", "Speaker") in controls
