output "private_ips" {
  description = "Addresses of the nodes, in their order."
  value       = aws_instance.node[*].private_ip
}

output "instances" {
  description = "Each node's machine."
  value = [
    for index, node in aws_instance.node : {
      name        = node.tags.Name
      instance_id = node.id
      private_ip  = node.private_ip
      zone        = node.availability_zone
      data_volume = aws_ebs_volume.data[index].id
    }
  ]
}
