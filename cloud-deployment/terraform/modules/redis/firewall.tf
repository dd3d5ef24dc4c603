locals {
  # Ports of the data, for Triton, the VPN and the other nodes.
  data_ports = var.engine == "oss" ? {
    redis   = { from = 6379, what = "Redis" }
    cluster = { from = 6380, what = "Redis Cluster" }
    copies  = { from = 6381, what = "Redis Cluster's copies" }
    } : {
    database-1 = { from = 12000, what = "first database" }
    database-2 = { from = 12001, what = "second database" }
  }

  clients = {
    triton = { group_id = var.triton_group_id, self = false, what = "Triton" }
    vpn    = { group_id = var.vpn_group_id, self = false, what = "the VPN" }
    nodes  = { group_id = null, self = true, what = "the other nodes" }
  }

  data_rules = merge([
    for client_name, client in local.clients : {
      for port_name, port in local.data_ports : "${port_name}-from-${client_name}" => {
        description = "${port.what} from ${client.what}"
        from        = port.from
        group_id    = client.group_id
        self        = client.self
      }
    }
  ]...)

  common_rules = {
    ssh            = { description = "SSH from the VPN", from = 22, group_id = var.vpn_group_id }
    node-exporter  = { description = "Metrics of the machine", from = 9100, group_id = var.monitoring_group_id }
    redis-exporter = { description = "Metrics of Redis", from = 9121, group_id = var.monitoring_group_id }
  }

  oss_rules = {
    bus        = { description = "Redis Cluster's bus among the nodes", from = 16380, self = true }
    bus-copies = { description = "The bus of its copies among the nodes", from = 16381, self = true }
  }

  enterprise_rules = {
    ui      = { description = "Web interface from the VPN", from = 8443, group_id = var.vpn_group_id }
    rest    = { description = "REST interface from the VPN", from = 9443, group_id = var.vpn_group_id }
    metrics = { description = "Metrics of Redis Enterprise", from = 8070, group_id = var.monitoring_group_id }
    # Its nodes talk on dozens of ports, which differ from version to version.
    nodes = { description = "Everything among the nodes", from = 0, protocol = "-1", self = true }
  }
}

module "firewall" {
  source = "../firewall"

  name        = "${var.name}-redis"
  description = "Redis nodes"
  vpc_id      = var.vpc_id
  ingress = merge(
    local.data_rules,
    local.common_rules,
    { for key, rule in local.oss_rules : key => rule if var.engine == "oss" },
    { for key, rule in local.enterprise_rules : key => rule if var.engine == "enterprise" },
  )
}
