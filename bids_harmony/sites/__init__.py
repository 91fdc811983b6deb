"""How a site's scans look: descriptors of a scan, the site code, calibration."""
