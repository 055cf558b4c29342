"""An ACL file of an earlier version, with the rights of this one."""

from pathlib import Path

import pytest

from fetchfleet.worker.redis_support import acl
from tests.support.commands import Commands

OWN = "user admin on >secret ~* &* +@all"
EARLIER = f"""user default off
user producer on #{"1" * 64} +@connection -@dangerous (~ff:* +eval +evalsha) (~ff:batches +zrevrange)
user pusher on #{"2" * 64} +@connection %W~ff:inbox +rpush
user worker on #{"3" * 64} #{"4" * 64} ~ff:* ~arq:* +time +eval
user billing on sanitize-payload #{"5" * 64} resetchannels -@all (%W~ff:inbox:billing +rpush)
user reader off #{"6" * 64} ~ff:results +xack

{OWN}
"""


def test_users_of_a_fleet_keep_their_passwords_and_get_the_rights_of_this_version() -> None:
    """Disabled users and users with two passwords too. Other users stay unchanged."""
    assert acl.renewed(EARLIER).splitlines() == [
        "user default off",
        acl.PRODUCER.line("#" + "1" * 64),
        acl.PUSHER.line("#" + "2" * 64),
        acl.WORKER.line(f"#{'3' * 64} #{'4' * 64}"),
        acl.pusher("billing").line("#" + "5" * 64),
        acl.READER.line(f"off #{'6' * 64}"),
        "",
        OWN,
    ]


@pytest.mark.parametrize("of", [acl.template(), acl.template(acl.roles([acl.pusher("pusher")]))])
def test_a_file_of_this_version_is_unchanged(of: str) -> None:
    """Its user pusher may lack the right to the shared inbox."""
    assert of == acl.renewed(of)


def test_the_command_prints_the_file_and_refuses_other_files(tmp_path: Path) -> None:
    """It changes no file."""
    file, other = tmp_path / "users.acl", tmp_path / "other"
    file.write_text(EARLIER)
    other.write_text("")
    commands = Commands("redis://127.0.0.1:1")

    assert acl.renewed(EARLIER) == commands.run("acl", "--keep", str(file))
    assert EARLIER == file.read_text()
    for wrong in ([str(other)], [str(tmp_path / "none")], [str(file), "--template"]):
        assert 2 == commands.invoke("acl", "--keep", *wrong).exit_code
