"""A step of Llama's kind of decoder on a CPU: few, large products, and kernels for what stands around them."""
