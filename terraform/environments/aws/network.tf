resource "aws_vpc" "this" {
  cidr_block           = var.cidr
  enable_dns_hostnames = true
  tags                 = { Name = var.name }
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id
  tags   = { Name = var.name }
}

resource "aws_route_table" "this" {
  vpc_id = aws_vpc.this.id
  tags   = { Name = var.name }
}

locals {
  hidden = var.access != "public"
}

# Nodes with a public address go out by it, the others by one gateway: packages and time come that way.
resource "aws_route" "out" {
  route_table_id         = aws_route_table.this.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = local.hidden ? null : aws_internet_gateway.this.id
  nat_gateway_id         = one(aws_nat_gateway.this[*].id)
}

# The bucket is reached without the gateway and its price for every byte.
resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.this.id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.this.id]
  tags              = { Name = "${var.name}-s3" }
}

# For every zone that may be used, not for those in use: a node that leaves renumbers nothing.
resource "aws_subnet" "this" {
  for_each = { for index, zone in var.zones : zone => index }

  vpc_id            = aws_vpc.this.id
  availability_zone = each.key
  cidr_block        = cidrsubnet(var.cidr, 4, each.value)
  tags              = { Name = "${var.name}-${each.key}" }
}

resource "aws_route_table_association" "this" {
  for_each = aws_subnet.this

  subnet_id      = each.value.id
  route_table_id = aws_route_table.this.id
}

# Where the way out begins, and the bastion stands: the last of the ranges, behind those of the zones.
resource "aws_subnet" "edge" {
  count = local.hidden ? 1 : 0

  vpc_id            = aws_vpc.this.id
  availability_zone = var.zones[0]
  cidr_block        = cidrsubnet(var.cidr, 8, 255)
  tags              = { Name = "${var.name}-edge" }
}

resource "aws_route_table" "edge" {
  count = local.hidden ? 1 : 0

  vpc_id = aws_vpc.this.id
  tags   = { Name = "${var.name}-edge" }
}

resource "aws_route" "edge" {
  count = local.hidden ? 1 : 0

  route_table_id         = aws_route_table.edge[0].id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this.id
}

resource "aws_route_table_association" "edge" {
  count = local.hidden ? 1 : 0

  subnet_id      = aws_subnet.edge[0].id
  route_table_id = aws_route_table.edge[0].id
}

resource "aws_eip" "nat" {
  count = local.hidden ? 1 : 0

  domain     = "vpc"
  tags       = { Name = "${var.name}-nat" }
  depends_on = [aws_internet_gateway.this]
}

resource "aws_nat_gateway" "this" {
  count = local.hidden ? 1 : 0

  allocation_id = aws_eip.nat[0].id
  subnet_id     = aws_subnet.edge[0].id
  tags          = { Name = var.name }
  depends_on    = [aws_route.edge]
}
