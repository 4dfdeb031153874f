"""Data sets of LiDAR point clouds with oriented boxes: simulated scenes, KITTI, and sweeps of Argoverse 2."""
