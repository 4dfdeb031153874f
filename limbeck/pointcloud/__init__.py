"""3D object detection on LiDAR point clouds."""
