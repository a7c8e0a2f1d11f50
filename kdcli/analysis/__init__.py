"""What networks show once they are built or trained: layers, pairs, measures, feature maps."""
