// Runs the model of a bundle from C++:
//
//   predict model.onnx image=golden/0-input-0.npy --expect output=golden/0-output-0.npy
//
// Inputs and expected outputs are .npy files, by the names that manifest.json has for them. Prints the largest score of
// each row and its place (the label is manifest.json's `labels` at that place), and the largest difference from what is
// expected; exit status 1 where that is above the tolerance.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr double kAbsolute = 1e-4, kRelative = 1e-3;  // as in manifest.json, `tolerance`

struct Array {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> shape;
  std::vector<char> bytes;

  size_t size() const {
    size_t product = 1;
    for (const int64_t side : shape) product *= static_cast<size_t>(side);
    return product;
  }
};

ONNXTensorElementDataType type_of(const std::string& kind) {
  static const std::map<std::string, ONNXTensorElementDataType> known = {
      {"<f4", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}, {"<f8", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE},
      {"<i8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}, {"<i4", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},
      {"|u1", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8}, {"|i1", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8},
      {"|b1", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL}};
  const auto found = known.find(kind);
  if (found == known.end()) throw std::runtime_error("arrays of type " + kind + " are not read here");
  return found->second;
}

size_t width_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return 4;
    default:
      return 1;
  }
}

// What stands between `begin` and `end` in a text.
std::string between(const std::string& text, const std::string& begin, const std::string& end) {
  const size_t from = text.find(begin);
  const size_t until = from == std::string::npos ? from : text.find(end, from + begin.size());
  if (until == std::string::npos) throw std::runtime_error("this is not a .npy file");
  return text.substr(from + begin.size(), until - from - begin.size());
}

Array read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
  if (content.size() < 12 || std::memcmp(content.data(), "\x93NUMPY", 6) != 0) {
    throw std::runtime_error(path + " is not a .npy file");
  }
  const auto byte = [&](size_t at) { return static_cast<size_t>(static_cast<unsigned char>(content[at])); };
  const size_t begin = content[6] == 1 ? 10 : 12;
  size_t length = byte(8) | byte(9) << 8;
  if (begin == 12) length |= byte(10) << 16 | byte(11) << 24;
  if (begin + length > content.size()) throw std::runtime_error(path + " is not whole");
  const std::string header(content.data() + begin, length);
  if (header.find("'fortran_order': False") == std::string::npos) throw std::runtime_error(path + " is stored by columns");
  Array array;
  array.type = type_of(between(header, "'descr': '", "'"));
  std::string sides = between(header, "'shape': (", ")");
  std::replace(sides.begin(), sides.end(), ',', ' ');
  for (size_t at = 0; (at = sides.find_first_of("0123456789", at)) != std::string::npos;) {
    size_t used = 0;
    array.shape.push_back(std::stoll(sides.substr(at), &used));
    at += used;
  }
  array.bytes.assign(content.begin() + static_cast<std::ptrdiff_t>(begin + length), content.end());
  if (array.bytes.size() != array.size() * width_of(array.type)) throw std::runtime_error(path + " is not whole");
  return array;
}

// "name=file.npy" as a name and an array.
std::pair<std::string, Array> named(const std::string& word) {
  const size_t at = word.find('=');
  if (at == std::string::npos) throw std::runtime_error(word + " is not understood: write NAME=FILE.npy");
  return {word.substr(0, at), read_npy(word.substr(at + 1))};
}

void print_largest(const std::string& name, const float* values, size_t rows, size_t columns) {
  for (size_t row = 0; row < rows; ++row) {
    const float* first = values + row * columns;
    const float* best = std::max_element(first, first + columns);
    std::cout << name << ": largest " << *best << " at " << best - first << "\n";
  }
}

int run(const std::vector<std::string>& words) {
  if (words.empty()) throw std::runtime_error("usage: predict MODEL.onnx NAME=INPUT.npy ... [--expect NAME=OUTPUT.npy ...]");
  std::map<std::string, Array> inputs, expected;
  bool expecting = false;
  for (size_t i = 1; i < words.size(); ++i) {
    if (words[i] == "--expect") {
      expecting = true;
    } else {
      (expecting ? expected : inputs).insert(named(words[i]));
    }
  }
  Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "predict");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  Ort::Session session(environment, words[0].c_str(), options);
  const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<const char*> input_names, output_names;
  std::vector<Ort::Value> values;
  for (auto& [name, array] : inputs) {
    input_names.push_back(name.c_str());
    values.push_back(Ort::Value::CreateTensor(memory, array.bytes.data(), array.bytes.size(), array.shape.data(),
                                              array.shape.size(), array.type));
  }
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<Ort::AllocatedStringPtr> names;
  for (size_t i = 0; i < session.GetOutputCount(); ++i) names.push_back(session.GetOutputNameAllocated(i, allocator));
  for (const auto& name : names) output_names.push_back(name.get());
  std::vector<Ort::Value> outputs = session.Run(Ort::RunOptions{nullptr}, input_names.data(), values.data(), values.size(),
                                                output_names.data(), output_names.size());
  bool fine = true;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto about = outputs[i].GetTensorTypeAndShapeInfo();
    if (about.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) continue;
    const std::vector<int64_t> shape = about.GetShape();
    const float* got = outputs[i].GetTensorData<float>();
    if (shape.size() == 2) print_largest(output_names[i], got, static_cast<size_t>(shape[0]), static_cast<size_t>(shape[1]));
    const auto found = expected.find(output_names[i]);
    if (found == expected.end()) continue;
    if (found->second.shape != shape || found->second.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
      throw std::runtime_error(std::string(output_names[i]) + " has another shape or type than expected");
    }
    const float* wanted = reinterpret_cast<const float*>(found->second.bytes.data());
    double worst = 0;
    bool same = true;
    for (size_t at = 0; at < found->second.size(); ++at) {
      const double difference = std::abs(static_cast<double>(got[at]) - wanted[at]);
      worst = std::max(worst, difference);
      if (!(difference <= kAbsolute + kRelative * std::abs(static_cast<double>(wanted[at])))) same = false;
    }
    fine = fine && same;
    std::cout << output_names[i] << ": largest difference " << worst << (same ? ", as recorded\n" : ", NOT as recorded\n");
  }
  return fine ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
  try {
    return run({words + 1, words + count});
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
