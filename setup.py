"""What setup.cfg cannot say: `configs/` lies beside the code and is installed inside it, as `norton.configs`."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["norton*", "experiments*", "detection*"]),
        "hydra_plugins.norton_sweeper",  # in the folder where Hydra looks for plugins, which is no package
        "norton.configs",
    ],
    package_dir={"norton.configs": "configs"},
)
