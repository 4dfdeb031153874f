"""3D object detection in LiDAR point clouds."""
