"""Site acquisition effects: scan descriptors, the site code and calibration."""
