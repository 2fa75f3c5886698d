"""API keys: the right key and nothing else, for its speakers and no others, and no longer than it is in the file."""

import datetime
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from specialize.cli import main
from specialize.errors import KeyFileError
from specialize.serve import Grant, KeyFile, Keys
from specialize.serve import keys as keys_module

ROOT = Path(__file__).resolve().parents[2]
TOMORROW = keys_module.utc_today() + datetime.timedelta(days=1)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_lets_in_its_bearer_with_their_speakers_alone(path):
    made = {name: KeyFile(path).add(name, [name, f"{name}-*"]) for name in ("ana", "ben", "clinic")}
    keys = Keys(path)
    for name, key in made.items():
        grant = keys.check(key)
        assert grant is not None
        assert grant == Grant(name, (name, f"{name}-*"), False)
        assert [one for one in made if grant.allows(one)] == [name]
        assert grant.allows(f"{name}-2")
        assert not grant.allows(name.upper())
        assert not grant.allows("")
    assert len(set(made.values())) == 3


@pytest.mark.parametrize(
    "changed",
    [
        lambda key: "",
        lambda key: "sk-",
        lambda key: key[:-1],
        lambda key: key[1:],
        lambda key: key + "A",
        lambda key: key + "\0",
        lambda key: " " + key,
        lambda key: key + "\n",
        lambda key: key.swapcase(),
        lambda key: key.removeprefix("sk-"),
        lambda key: "sk-" + key,
        lambda key: key[:-1] + chr(ord(key[-1]) ^ 1),
        lambda key: "s\u212a" + key[2:],  # the Kelvin sign, which folds to a k
        lambda key: key[:-1] + "\udcff",
        lambda key: "\N{GRINNING FACE}" * 10,
        lambda key: key * 2,
        lambda key: "sk-" + "A" * 10_000_000,
    ],
)
def test_what_is_no_key_is_refused(path, changed):
    key = KeyFile(path).add("ana", ["*"])
    keys = Keys(path)
    assert keys.check(key) is not None
    assert keys.check(changed(key)) is None


def test_what_is_in_the_file_is_no_key(path):
    key = KeyFile(path).add("ana", ["ana"])
    text = path.read_text()
    assert key not in text
    assert key.removeprefix("sk-") not in text
    keys = Keys(path)
    (entry,) = json.loads(text)["keys"]
    for value in (*entry.values(), entry["salt"] + entry["hash"]):
        assert keys.check(str(value)) is None
        assert keys.check(f"sk-{value}") is None


def test_every_entry_is_compared_in_constant_time(path, monkeypatch):
    """The first of four keys costs as many comparisons as the last and as none."""
    made = [KeyFile(path).add(f"k{i}", ["*"]) for i in range(4)]
    keys, compared = Keys(path), []
    compare = keys_module.hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b: compared.append(len(b)) or compare(a, b))
    for presented in (made[0], made[3], "sk-none"):
        compared.clear()
        keys.check(presented)
        assert compared == [32] * 4


def test_patterns_are_those_of_a_shell():
    grant = Grant("x", ("ward-?", "b[12]", "star[*]", "[odd]", "tab\t*"), False)
    assert all(map(grant.allows, ("ward-1", "b1", "b2", "star*", "[odd]", "o", "tab\t\n")))
    assert not any(map(grant.allows, ("ward-12", "b3", "stars", "odd", "Ward-1", "x\nward-1")))
    assert Grant("x", ("*",), False).allows("anyone at all/\n\N{SNOWMAN}")
    assert not Grant("metrics", (), True).allows("ana")


def test_a_revoked_key_is_refused_at_once_and_a_new_one_taken(path):
    first = KeyFile(path).add("first", ["*"])
    keys = Keys(path)
    for turn in range(20):
        name = f"k{turn}"
        key = KeyFile(path).add(name, ["*"])
        assert keys.check(key) is not None
        KeyFile(path).revoke(name)
        assert keys.check(key) is None
    assert keys.check(first) is not None
    with pytest.raises(KeyFileError, match="has no key 'k0'"):
        KeyFile(path).revoke("k0")


def test_a_link_that_is_turned_to_another_file_is_followed(tmp_path):
    """As Kubernetes does with a mounted secret."""
    old, new = KeyFile(tmp_path / "a.json").add("a", ["*"]), KeyFile(tmp_path / "b.json").add("b", ["*"])
    link = tmp_path / "keys.json"
    link.symlink_to("a.json")
    keys = Keys(link)
    assert keys.check(old)
    (tmp_path / "next").symlink_to("b.json")
    os.replace(tmp_path / "next", link)
    assert keys.check(old) is None
    assert keys.check(new)
    KeyFile(link).revoke("b")
    assert link.is_symlink()
    assert keys.check(new) is None


def test_a_key_ends_on_the_day_that_it_says(path):
    key = KeyFile(path).add("ana", ["*"], expires=TOMORROW)
    day = TOMORROW - datetime.timedelta(days=1)
    keys = Keys(path, today=lambda: day)
    assert keys.check(key)
    day = TOMORROW
    assert keys.check(key) is None
    with pytest.raises(KeyFileError, match="expired on 2020-01-01 already"):
        KeyFile(path).add("late", ["*"], expires=datetime.date(2020, 1, 1))


def test_names_are_taken_once_and_keys_are_good_for_something(path):
    file = KeyFile(path)
    file.add("ana", ["ana"])
    for name, speakers, manage, reason in (
        ("ana", ["ben"], False, "a key 'ana' already"),
        ("ben", [], False, "good for nothing"),
        ("ben", [""], True, "empty"),
        ("", ["*"], False, "cannot be the name"),
        ("\x1b[2J", ["*"], False, "cannot be the name"),
    ):
        with pytest.raises(KeyFileError, match=reason):
            file.add(name, speakers, manage=manage)
    assert [entry.grant.name for entry in file.entries()] == ["ana"]
    key = file.add("metrics", manage=True)
    assert Keys(path).check(key) == Grant("metrics", (), True)


def test_only_the_owner_may_write_and_who_may_read_stays(path, caplog):
    file = KeyFile(path)
    before = os.umask(0)
    try:
        key = file.add("ana", ["*"])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    keys = Keys(path)
    for mode in (0o620, 0o602, 0o666):
        path.chmod(mode)
        assert keys.check(key) is None
        assert "chmod go-w" in (keys.problem or "")
        with pytest.raises(KeyFileError, match="Others may write"):
            Keys(path)
        with pytest.raises(KeyFileError, match="Others may write"):
            file.add("ben", ["*"])
        path.chmod(0o600)
        assert keys.check(key)
        assert keys.problem is None
    path.chmod(0o640)
    caplog.clear()
    assert Keys(path).check(key)
    assert not caplog.records
    path.chmod(0o644)
    assert Keys(path).check(key)
    assert "names speakers" in caplog.text
    file.add("ben", ["*"])
    assert path.stat().st_mode & 0o777 == 0o644, "a server that runs as another user must still read it"


def test_a_damaged_or_missing_file_lets_nobody_in_until_it_is_mended(path, caplog):
    caplog.set_level(logging.ERROR)
    key = KeyFile(path).add("ana", ["*"])
    good, data = path.read_bytes(), json.loads(path.read_text())
    (entry,) = data["keys"]
    keys = Keys(path)

    def changed(**values) -> bytes:
        return json.dumps(data | {"keys": [entry | values]}).encode()

    damaged = [
        *(good[:cut] for cut in range(0, len(good) - 2, 37)),
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b"null",
        b'{"format": 1, "keys": {}, "keys": [null]}',
        json.dumps(data | {"format": "1"}).encode(),
        json.dumps(data | {"keys": [entry, entry]}).encode(),
        json.dumps(data | {"keys": [{}]}).encode(),
        changed(speakers="*"),
        changed(speakers=[1]),
        changed(name=""),
        changed(hash=""),
        changed(hash="zz"),
        changed(salt=None),
        changed(manage="yes"),
        changed(expires="soon"),
        changed(expires=5),
        changed(created=None),
    ]
    for content in damaged:
        path.write_bytes(content)
        caplog.clear()
        assert keys.check(key) is None, content
        assert keys.check(key) is None
        assert len(caplog.records) == 1, "told once, not at every request"
        assert "is damaged" in (keys.problem or "")
        with pytest.raises(KeyFileError, match=r"is damaged: .*\. Put a good copy"):
            KeyFile(path).add("ben", ["*"])
        path.write_bytes(good)
        assert keys.check(key)
    path.write_bytes(json.dumps(data | {"format": 2}).encode())
    assert keys.check(key) is None
    assert "Update it" in (keys.problem or "")
    path.unlink()
    assert keys.check(key) is None
    assert "no key file" in (keys.problem or "")
    with pytest.raises(KeyFileError, match="no key file"):
        Keys(path)
    path.write_bytes(good)
    path.chmod(0o600)
    assert keys.check(key)


ADDS = """
import sys
from specialize.serve.keys import KeyFile

for turn in range(15):
    print(KeyFile(sys.argv[1]).add(f"{sys.argv[2]}-{turn}", ["*"]))
    if turn % 3 == 0:
        KeyFile(sys.argv[1]).revoke(f"{sys.argv[2]}-{turn}")
"""


def test_changes_at_the_same_time_are_all_kept(path):
    KeyFile(path).add("before", ["*"])
    command = [sys.executable, "-c", ADDS, str(path)]
    running = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True, cwd=ROOT, encoding="utf-8")
        for i in range(4)
    ]
    keys = Keys(path)
    while any(one.poll() is None for one in running):
        assert keys.problem is None, "a reader saw half a file"
    made = [one.communicate()[0].split() for one in running]
    assert [one.returncode for one in running] == [0] * 4
    for i, mine in enumerate(made):
        for turn, key in enumerate(mine):
            grant = keys.check(key)
            assert grant is None if turn % 3 == 0 else grant is not None
            assert grant is None or grant.name == f"{i}-{turn}"
    assert len(KeyFile(path).entries()) == 1 + 4 * 10
    assert sorted(one.name for one in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_change_that_fails_leaves_the_file_as_it_was(path, monkeypatch):
    key = KeyFile(path).add("ana", ["*"])
    before = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keys_module.os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        KeyFile(path).add("ben", ["*"])
    assert path.read_bytes() == before
    assert sorted(one.name for one in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]
    assert Keys(path).check(key)


def test_the_commands(path, capsys):
    file = ["--file", str(path)]
    main(["keys", "add", "clinic", "--speakers", "ana", "ben\x1b[2J", *file, "--manage", "--expires", str(TOMORROW)])
    said = capsys.readouterr()
    key = said.out.strip()
    assert key.startswith("sk-")
    assert "cannot be shown again" in said.err
    assert Keys(path).check(key) == Grant("clinic", ("ana", "ben\x1b[2J"), True)
    main(["keys", "list", *file])
    listed = capsys.readouterr().out
    assert f"expires {TOMORROW}" in listed
    assert "clinic: ana, ben" in listed
    assert "\x1b" not in listed
    assert key not in listed
    main(["keys", "revoke", "clinic", *file])
    assert Keys(path).check(key) is None
    for words, reason in ((["revoke", "clinic"], "no key 'clinic'. It has: none"), (["add", "x"], "--speakers")):
        with pytest.raises(SystemExit) as ended:
            main(["keys", *words, *file])
        assert ended.value.code == 1
        assert reason in capsys.readouterr().err


def test_the_commands_need_not_wait_for_jax():
    program = "import sys, specialize.cli, specialize.serve.keys_command; print('jax' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.strip() == "False"
