"""The acquisition of a site: descriptors of a scan, the site code, calibration."""
