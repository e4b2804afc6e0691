"""Print the installed versions as a lock file. Run by `make lock` in a fresh environment."""

from importlib.metadata import distributions

# torch asks for these on Linux only; elsewhere they do not exist.
LINUX = ("nvidia-", "cuda-", "triton")
HERE = ("pip", "swinexp")

print("# Every package of the environment, pinned. Written by `make lock`; setup.cfg holds the ranges.")
for name, version in sorted({(d.metadata["Name"].lower(), d.version) for d in distributions()}):
    if name not in HERE:
        marker = ' ; sys_platform == "linux"' if name.startswith(LINUX) else ""
        print(f"{name}=={version}{marker}")
