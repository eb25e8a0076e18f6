"""What ``python -m kvferry explain`` is made of: facts from the library, told as text and as SVG."""
