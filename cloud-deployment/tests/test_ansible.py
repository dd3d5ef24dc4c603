"""The playbooks as text: what ansible-lint says, and what machines that configure themselves are handed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from archive import pack_playbooks
from cloud import ANSIBLE


def test_ansible_lint_finds_nothing(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    hosts = tmp_path / "hosts"  # that of ansible.cfg asks AWS, without which no playbook can be loaded
    hosts.write_text("localhost ansible_connection=local\n")
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "ANSIBLE_INVENTORY": str(hosts)}
    done = subprocess.run(
        [programs / "ansible-lint", "--nocolor"], cwd=ANSIBLE, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ERROR" not in done.stderr  # what it cannot load it says, and passes


def test_the_same_playbooks_make_the_same_archive(tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar.gz", tmp_path / "second.tar.gz"
    assert pack_playbooks(first) == pack_playbooks(second)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        names = archive.getnames()
    assert {"common.yml", "vpn.yml", "triton.yml", "library/public_parameter.py", "ansible.cfg"} <= set(names)
    assert any(name.startswith("collections/ansible_collections/amazon/aws/plugins/lookup") for name in names)
    assert not [name for name in names if name.startswith("clients/") or name.endswith(".pyc")]
