"""What a pretrained model has learnt: cell types and gene classes."""
