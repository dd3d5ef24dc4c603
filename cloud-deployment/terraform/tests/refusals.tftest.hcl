# Run by `terraform test`, Terraform 1.7 or newer: what must be refused while planning, by variable. AWS is mocked:
# nothing is asked and nothing is made.

mock_provider "aws" {
  override_data {
    target = data.aws_availability_zones.here
    values = { names = ["eu-central-1a", "eu-central-1b", "eu-central-1c"] }
  }
  override_data {
    target = data.aws_ec2_instance_type.used
    values = {
      supported_architectures = ["x86_64"]
      gpus                    = [{ count = 1, manufacturer = "NVIDIA", memory_size = 22888, name = "L4" }]
    }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
}

variables {
  ssh_public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE tests"
  playbooks      = "versions.tf" # any file that is there
  vpn_peers = [
    { name = "laptop", public_key = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=", address = "10.99.0.2" },
  ]
}

run "wrong_values" {
  command = plan

  expect_failures = [
    var.dns_zone,
    var.environment,
    var.flow_log_days,
    var.kms_key_arn,
    var.name,
    var.playbooks,
    var.redis_data_gib,
    var.redis_engine,
    var.redis_nodes,
    var.redis_snapshots_kept,
    var.region,
    var.secret_recovery_days,
    var.ssh_public_key,
    var.tags,
    var.triton_ami,
    var.triton_client_cidrs,
    var.triton_disk_gib,
    var.triton_max_size,
    var.triton_model,
    var.vpc_cidr,
    var.vpn_network,
    var.vpn_peers,
    var.vpn_port,
  ]

  variables {
    dns_zone             = "recsys"
    environment          = ""
    flow_log_days        = 2
    kms_key_arn          = "alias/mine"
    name                 = "Recsys_1"
    playbooks            = "no/such/file"
    redis_data_gib       = 1
    redis_engine         = "valkey"
    redis_nodes          = 4
    redis_snapshots_kept = -1
    region               = "frankfurt"
    secret_recovery_days = 3
    ssh_public_key       = ""
    tags                 = { project = "other" }
    triton_ami           = "debian"
    triton_client_cidrs  = ["0.0.0.0/0"]
    triton_disk_gib      = 8
    triton_max_size      = 0
    triton_model         = "small"
    vpc_cidr             = "10.20.0.0/8"
    vpn_network          = "10.99.0.1/24"
    vpn_peers            = []
    vpn_port             = 80
  }
}

run "networks_that_overlap" {
  command         = plan
  expect_failures = [terraform_data.checks]

  variables {
    vpn_network = "10.20.8.0/24"
    vpn_peers = [
      { name = "laptop", public_key = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=", address = "10.20.8.2" },
    ]
  }
}

run "no_such_zone_and_no_gpu" {
  command         = plan
  expect_failures = [data.aws_availability_zones.here, data.aws_ec2_instance_type.used]

  variables {
    zones = ["us-east-1a"]
  }

  override_data {
    target = data.aws_ec2_instance_type.used
    values = { supported_architectures = ["x86_64"], gpus = [] }
  }
}
