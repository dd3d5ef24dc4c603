#!/usr/bin/python
"""Gives a secret of AWS Secrets Manager a value: one that Secrets Manager generates, or the given one."""

from __future__ import annotations

DOCUMENTATION = """
module: secret_value
short_description: Gives a secret of AWS Secrets Manager a value
description:
  - A secret that has a value keeps it, unless O(replace). No value is returned or logged.
options:
  names:
    description: Secrets, which exist already.
    type: list
    elements: str
    required: true
  value:
    description: The value. Without it Secrets Manager generates one of letters and digits for each secret.
    type: str
  length:
    description: Of generated values.
    type: int
    default: 40
  replace:
    description: Whether a secret that has a value gets a new one; the former stays readable as AWSPREVIOUS.
    type: bool
    default: false
  region:
    description: Of AWS.
    type: str
    required: true
author: redis-recsys
"""

EXAMPLES = """
- name: Have Secrets Manager generate a password
  secret_value:
    names: [recsys/redis-admin]
    region: eu-central-1
"""

RETURN = """
given:
  description: Secrets that got a value.
  type: list
  elements: str
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

try:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    boto3 = None


def give(client, names: list[str], value: str | None, length: int, replace: bool, check: bool) -> list[str]:
    """Give values to the secrets that need one, and return their names."""
    given = []
    for name in names:
        stages = client.describe_secret(SecretId=name).get("VersionIdsToStages") or {}
        if not replace and any("AWSCURRENT" in each for each in stages.values()):
            continue
        given.append(name)
        if check:
            continue
        new = value or client.get_random_password(PasswordLength=length, ExcludePunctuation=True)["RandomPassword"]
        client.put_secret_value(SecretId=name, SecretString=new)
    return given


def main() -> None:
    module = AnsibleModule(
        {
            "names": {"type": "list", "elements": "str", "required": True},
            "value": {"type": "str", "no_log": True},
            "length": {"type": "int", "default": 40},
            "replace": {"type": "bool", "default": False},
            "region": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    if boto3 is None:
        module.fail_json(msg="boto3 is missing in the Python that runs Ansible: pip install boto3")
    given = module.params
    try:
        client = boto3.client("secretsmanager", region_name=given["region"])
        names = give(client, given["names"], given["value"], given["length"], given["replace"], module.check_mode)
    except (BotoCoreError, ClientError) as error:
        module.fail_json(msg=f"Secrets Manager refuses: {error}")
    module.exit_json(changed=bool(names), given=names)


if __name__ == "__main__":
    main()
