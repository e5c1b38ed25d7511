# torch is that of pip's index: on Linux, PyPI's has CUDA.
# docker build -t hssl . && docker run --rm -v "$PWD:/data" hssl demo -o demo
FROM python:3.12-slim
WORKDIR /opt/hssl
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[all]"
WORKDIR /data
ENTRYPOINT ["hssl"]
