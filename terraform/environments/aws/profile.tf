# What the nodes are at AWS: whoever is on them opens the bucket, without keys that could be lost.
locals {
  instance_profile = var.bucket == null ? var.instance_profile : aws_iam_instance_profile.node[0].name
}

resource "aws_iam_role" "node" {
  count = var.bucket == null ? 0 : 1

  name = "${var.name}-node"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy" "bucket" {
  count = var.bucket == null ? 0 : 1

  name = "bucket"
  role = aws_iam_role.node[0].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"]
        Resource = "arn:aws:s3:::${var.bucket}"
      },
      {
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
        Resource = "arn:aws:s3:::${var.bucket}/*"
      },
    ]
  })
}

resource "aws_iam_instance_profile" "node" {
  count = var.bucket == null ? 0 : 1

  name = "${var.name}-node"
  role = aws_iam_role.node[0].name
}
