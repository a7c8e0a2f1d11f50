"""torchvision's detectors, whose host waits for the device a fixed number of times, whatever the images and levels."""
