// A stand-in for an accelerator behind torch's PrivateUse1 interface, to count what of a model runs there.
//
// Its memory is host memory that torch takes for another device's: nothing reaches it but the operators registered
// here, and a copy. The twelve operators that torch's documentation requires of every adapter are written out; further
// ones are registered by name when the device is opened (fb_stand_in_register) and compute in place, on the device's
// memory. Whatever else a model asks for goes to torch's own boxed fallback, which copies the operands to the host, and
// is counted by operator. Contract: kernels/README.md.

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <string>

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List_inl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {

constexpr auto DEVICE = c10::DeviceType::PrivateUse1;
constexpr size_t LINE = 64;

struct Memory final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        void* at = bytes ? std::aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE) : nullptr;
        TORCH_CHECK(at || !bytes, "the stand-in device has no ", bytes, " bytes left");
        return {at, at, &std::free, c10::Device(DEVICE, 0)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
    void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Memory memory;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DEVICE> {
    c10::Device exchangeDevice(c10::Device) const override { return {DEVICE, 0}; }
    c10::Device getDevice() const override { return {DEVICE, 0}; }
    c10::Stream getStream(c10::Device) const noexcept override {
        return c10::Stream(c10::Stream::DEFAULT, c10::Device(DEVICE, 0));
    }
    c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    c10::DeviceIndex getCurrentDevice() const override { return 0; }
    void setCurrentDevice(c10::DeviceIndex) const override {}
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
};

struct Tally {
    int64_t calls = 0;
    int64_t bytes = 0;
};

std::mutex counting;  // backward passes run on threads of their own
std::map<std::string, Tally> ran, fell_back;
int64_t fallbacks = 0;

void count(std::map<std::string, Tally>& where, const c10::OperatorHandle& op, int64_t bytes) {
    const auto& name = op.operator_name();
    const std::lock_guard<std::mutex> lock(counting);
    Tally& mine = where[name.overload_name.empty() ? name.name : name.name + "." + name.overload_name];
    mine.calls += 1;
    mine.bytes += bytes;
}

bool is_ours(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == DEVICE; }

// The device's own view of its memory: no copy, the tensor is kept alive.
at::Tensor seen(const at::Tensor& tensor) {
    if (!is_ours(tensor)) return tensor;
    return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void*) {},
                         tensor.options().device(c10::kCPU), c10::Device(c10::kCPU));
}

// A result becomes the device's memory as it is.
at::Tensor kept(const at::Tensor& result) {
    if (!result.defined() || is_ours(result)) return result;
    auto* owner = new at::Tensor(result);
    c10::DataPtr data(result.storage().mutable_data(), owner, [](void* at) { delete static_cast<at::Tensor*>(at); },
                      c10::Device(DEVICE, 0));
    c10::Storage storage(c10::Storage::use_byte_size_t(), result.storage().nbytes(), std::move(data), &memory, true);
    auto made = at::detail::make_tensor<c10::TensorImpl>(
        std::move(storage), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), result.dtype());
    made.unsafeGetTensorImpl()->set_sizes_and_strides(result.sizes(), result.strides(), result.storage_offset());
    return made;
}

// Applies `change` to every tensor of a value, lists included.
template <typename Change>
c10::IValue changed(const c10::IValue& value, Change change) {
    if (value.isTensor()) return change(value.toTensor());
    if (value.isTensorList()) {
        c10::List<at::Tensor> made;
        for (const at::Tensor& item : value.toTensorVector()) made.push_back(change(item));
        return made;
    }
    if (value.isOptionalTensorList()) {
        c10::List<std::optional<at::Tensor>> made;
        for (const std::optional<at::Tensor>& item : value.toOptionalTensorVector())
            made.push_back(item ? std::optional<at::Tensor>(change(*item)) : std::nullopt);
        return made;
    }
    return value;
}

bool written(const c10::Argument& argument) { return argument.alias_info() && argument.alias_info()->isWrite(); }

// The argument that a result stands for, where the schema says that one is written and returned.
int written_argument(const c10::FunctionSchema& schema, const c10::Argument& result) {
    if (!written(result)) return -1;
    for (size_t i = 0; i < schema.arguments().size(); ++i)
        if (written(schema.arguments()[i]) &&
            schema.arguments()[i].alias_info()->beforeSets() == result.alias_info()->beforeSets())
            return static_cast<int>(i);
    return -1;
}

int64_t bytes_of(const c10::IValue& value) {
    int64_t total = 0;
    changed(value, [&](const at::Tensor& tensor) {
        if (is_ours(tensor)) total += static_cast<int64_t>(tensor.nbytes());
        return tensor;
    });
    return total;
}

// Output tensors that come empty are to be sized by the operator; the device then takes over what it allocated.
void take_over(const at::Tensor& ours, const at::Tensor& result) {
    const at::Tensor made = kept(result);
    ours.unsafeGetTensorImpl()->set_storage_keep_dtype(made.storage());
    ours.unsafeGetTensorImpl()->set_sizes_and_strides(made.sizes(), made.strides(), made.storage_offset());
}

void on_device(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const c10::FunctionSchema& schema = op.schema();
    const size_t count_in = schema.arguments().size(), count_out = schema.returns().size();
    const std::vector<c10::IValue> given(stack->end() - count_in, stack->end());
    std::vector<c10::IValue> operands;
    for (size_t i = 0; i < count_in; ++i) {
        const bool plain = given[i].isTensor() && given[i].toTensor().defined();
        TORCH_CHECK(!plain || is_ours(given[i].toTensor()) || given[i].toTensor().dim() == 0, op.operator_name(),
                    ": an operand lies on ", given[i].toTensor().device(), ", not on the stand-in device");
        const bool sized_by_result = written(schema.arguments()[i]) && plain && given[i].toTensor().numel() == 0;
        if (given[i].isDevice())
            operands.emplace_back(c10::Device(c10::kCPU));
        else if (sized_by_result)
            operands.emplace_back(at::detail::empty_cpu({0}, given[i].toTensor().options().device(c10::kCPU)));
        else
            operands.push_back(changed(given[i], seen));
    }
    stack->erase(stack->end() - count_in, stack->end());
    stack->insert(stack->end(), operands.begin(), operands.end());
    {
        at::AutoDispatchBelowADInplaceOrView guard;
        op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
    }
    for (size_t i = 0; i < count_in; ++i)
        if (written(schema.arguments()[i]) && given[i].isTensor() && operands[i].toTensor().numel() > 0 &&
            given[i].toTensor().numel() == 0)
            take_over(given[i].toTensor(), operands[i].toTensor());
    for (size_t i = 0; i < count_out; ++i) {
        c10::IValue& result = *(stack->end() - count_out + i);
        const int same = written_argument(schema, schema.returns()[i]);
        result = same < 0 ? changed(result, kept) : given[same];
    }
    count(ran, op, 0);
}

void to_host_and_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const c10::FunctionSchema& schema = op.schema();
    const size_t count_in = schema.arguments().size(), count_out = schema.returns().size();
    int64_t bytes = 0;
    for (size_t i = 0; i < count_in; ++i) {
        const int64_t each = bytes_of(*(stack->end() - count_in + i));
        bytes += written(schema.arguments()[i]) ? 2 * each : each;
    }
    {
        const std::lock_guard<std::mutex> lock(counting);
        fallbacks += 1;
    }
    at::native::cpu_fallback(op, stack);
    for (size_t i = 0; i < count_out; ++i)
        if (written_argument(schema, schema.returns()[i]) < 0) bytes += bytes_of(*(stack->end() - count_out + i));
    count(fell_back, op, bytes);
}

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                 std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
    return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                     c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
    return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                             c10::dtype_or_default(dtype));
}

at::Tensor as_strided(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                      std::optional<int64_t> offset) {
    return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

const at::Tensor& resize_(const at::Tensor& self, c10::IntArrayRef size, std::optional<c10::MemoryFormat> format) {
    return at::native::resize_(self, size, format);
}

at::Tensor reshape_alias(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride) {
    return at::native::_reshape_alias(self, size, stride);
}

at::Tensor view(const at::Tensor& self, c10::IntArrayRef size) { return at::native::view(self, size); }

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool) {
    at::AutoDispatchBelowADInplaceOrView guard;
    seen(to).copy_(seen(self));
    return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
    if (to.sizes() != self.sizes()) to.resize_(self.sizes());
    return copy_from(self, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) { return at::_local_scalar_dense(seen(self)); }

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) { return at::native::set_tensor_(self, source); }

at::Tensor& set_storage(at::Tensor& self, c10::Storage source) { return at::native::set_(self, source); }

at::Tensor& set_storage_offset(at::Tensor& self, c10::Storage source, int64_t offset, c10::IntArrayRef size,
                               c10::IntArrayRef stride) {
    return at::native::set_storage_cpu_(self, source, offset, size, stride);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
    m.impl("empty.memory_format", empty);
    m.impl("empty_strided", empty_strided);
    m.impl("as_strided", as_strided);
    m.impl("view", view);
    m.impl("_reshape_alias", reshape_alias);
    m.impl("resize_", resize_);
    m.impl("_copy_from", copy_from);
    m.impl("_copy_from_and_resize", copy_from_and_resize);
    m.impl("_local_scalar_dense", local_scalar_dense);
    m.impl("set_.source_Tensor", set_tensor);
    m.impl("set_.source_Storage", set_storage);
    m.impl("set_.source_Storage_storage_offset", set_storage_offset);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&to_host_and_back>()); }

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

bool opened = [] {
    c10::SetAllocator(DEVICE, &memory);
    at::RegisterPrivateUse1HooksInterface(new Hooks());
    return true;
}();

}  // namespace

extern "C" {

int fb_abi_version() { return 1; }

// Registers one operator of aten, "name" or "name.overload", to compute on the device; 0 when done.
int fb_stand_in_register(const char* name) {
    static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
    try {
        library.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_device>());
        return 0;
    } catch (const std::exception&) {
        return -2;
    }
}

int64_t fb_stand_in_fallbacks() {
    const std::lock_guard<std::mutex> lock(counting);
    return fallbacks;
}

void fb_stand_in_reset() {
    const std::lock_guard<std::mutex> lock(counting);
    ran.clear();
    fell_back.clear();
}

// Lines of "device|host <tab> operator <tab> calls <tab> bytes copied"; valid until the next call.
const char* fb_stand_in_report() {
    static std::string text;
    const std::lock_guard<std::mutex> lock(counting);
    std::ostringstream lines;
    for (const auto& [name, tally] : ran) lines << "device\t" << name << '\t' << tally.calls << '\t' << tally.bytes << '\n';
    for (const auto& [name, tally] : fell_back)
        lines << "host\t" << name << '\t' << tally.calls << '\t' << tally.bytes << '\n';
    text = lines.str();
    return text.c_str();
}

}  // extern "C"
