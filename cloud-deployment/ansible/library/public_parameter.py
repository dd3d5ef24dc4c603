#!/usr/bin/python
"""Keeps a text that is no secret in a parameter of AWS Systems Manager."""

from __future__ import annotations

DOCUMENTATION = """
module: public_parameter
short_description: Keeps a text that is no secret in a parameter of AWS Systems Manager
description:
  - Asks for no rights but C(ssm:GetParameter) and C(ssm:PutParameter) on this parameter.
options:
  name:
    description: Of the parameter, with slashes.
    type: str
    required: true
  value:
    description: The text.
    type: str
    required: true
  region:
    description: Of AWS.
    type: str
    required: true
author: redis-recsys
"""

EXAMPLES = """
- name: Tell people a public key
  public_parameter:
    name: /recsys/vpn/public-key
    value: "{{ key }}"
    region: eu-central-1
"""

RETURN = """
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

try:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    boto3 = None


def keep(client, name: str, value: str, check: bool) -> bool:
    """Put the value where another one or none is; whether that was so."""
    try:
        if client.get_parameter(Name=name)["Parameter"]["Value"] == value:
            return False
    except client.exceptions.ParameterNotFound:
        pass
    if not check:
        client.put_parameter(Name=name, Value=value, Type="String", Overwrite=True)
    return True


def main() -> None:
    required = {"type": "str", "required": True}
    module = AnsibleModule({"name": required, "value": required, "region": required}, supports_check_mode=True)
    if boto3 is None:
        module.fail_json(msg="boto3 is missing in the Python that runs this: install python3-boto3")
    given = module.params
    try:
        client = boto3.client("ssm", region_name=given["region"])
        changed = keep(client, given["name"], given["value"], module.check_mode)
    except (BotoCoreError, ClientError) as error:
        module.fail_json(msg=f"Systems Manager refuses: {error}")
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
