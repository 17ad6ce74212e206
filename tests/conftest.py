import hypothesis
import torch

# The same examples every time: a commit that passes here passes everywhere.
hypothesis.settings.register_profile("pdlib", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("pdlib")

# The tests' tensors are small: a second thread would only wait for the first, and for all else that runs here.
torch.set_num_threads(1)
