"""3D object detection in point clouds."""
