// The parts of mmcv's extension that reference.py asks, with its own names and arguments.
#include <torch/extension.h>
#include <cfloat>
#include <cmath>
#include "pytorch/deform_conv.cpp"
#include "pytorch/focal_loss.cpp"
#include "pytorch/modulated_deform_conv.cpp"
#include "pytorch/nms.cpp"
#include "pytorch/roi_align.cpp"
#include "pytorch/roi_pool.cpp"
#include "pytorch/cpu/deform_conv.cpp"
#include "pytorch/cpu/modulated_deform_conv.cpp"
#include "pytorch/cpu/nms.cpp"
#include "pytorch/cpu/roi_align.cpp"
// mmcv has these two as CUDA kernels only; their bodies are plain C++ and run as one loop here.
#define __global__
#define CUDA_1D_KERNEL_LOOP(i, n) for (int i = 0; i < (n); ++i)
#define PYTORCH_CUDA_HELPER  // the header guard of the CUDA runtime's includes
template <typename T> void atomicAdd(T *to, T value) { *to += value; }
using std::max; using std::min; using std::pow; using std::log; using std::exp;
#include "sigmoid_focal_loss_cuda_kernel.cuh"
#include "softmax_focal_loss_cuda_kernel.cuh"
#include "roi_pool_cuda_kernel.cuh"

const float *data(Tensor t) { return t.numel() ? t.data_ptr<float>() : nullptr; }

void focal_forward_loop(Tensor input, Tensor target, Tensor weight, Tensor output, float gamma, float alpha) {
  sigmoid_focal_loss_forward_cuda_kernel<float>(output.numel(), data(input), target.data_ptr<int64_t>(), data(weight),
                                                output.data_ptr<float>(), gamma, alpha, input.size(1));
}
void focal_backward_loop(Tensor input, Tensor target, Tensor weight, Tensor grad, float gamma, float alpha) {
  sigmoid_focal_loss_backward_cuda_kernel<float>(grad.numel(), data(input), target.data_ptr<int64_t>(), data(weight),
                                                 grad.data_ptr<float>(), gamma, alpha, input.size(1));
}
void pool_forward_loop(Tensor input, Tensor rois, Tensor output, Tensor argmax, int height, int width, float scale) {
  roi_pool_forward_cuda_kernel<float>(output.numel(), data(input), data(rois), output.data_ptr<float>(),
                                      argmax.data_ptr<int>(), height, width, scale, input.size(1), input.size(2),
                                      input.size(3));
}
void pool_backward_loop(Tensor grad_output, Tensor rois, Tensor argmax, Tensor grad, int height, int width, float) {
  roi_pool_backward_cuda_kernel<float>(grad_output.numel(), data(grad_output), data(rois), argmax.data_ptr<int>(),
                                       grad.data_ptr<float>(), height, width, grad.size(1), grad.size(2), grad.size(3));
}
REGISTER_DEVICE_IMPL(sigmoid_focal_loss_forward_impl, CPU, focal_forward_loop);
REGISTER_DEVICE_IMPL(sigmoid_focal_loss_backward_impl, CPU, focal_backward_loop);
REGISTER_DEVICE_IMPL(roi_pool_forward_impl, CPU, pool_forward_loop);
REGISTER_DEVICE_IMPL(roi_pool_backward_impl, CPU, pool_backward_loop);

#define A(name) py::arg(#name)
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("nms", &nms, A(boxes), A(scores), A(iou_threshold), A(offset));
  m.def("softnms", &softnms, A(boxes), A(scores), A(dets), A(iou_threshold), A(sigma), A(min_score), A(method), A(offset));
  m.def("nms_match", &nms_match, A(dets), A(iou_threshold));
  m.def("roi_align_forward", &roi_align_forward, A(input), A(rois), A(output), A(argmax_y), A(argmax_x),
        A(aligned_height), A(aligned_width), A(spatial_scale), A(sampling_ratio), A(pool_mode), A(aligned));
  m.def("roi_align_backward", &roi_align_backward, A(grad_output), A(rois), A(argmax_y), A(argmax_x), A(grad_input),
        A(aligned_height), A(aligned_width), A(spatial_scale), A(sampling_ratio), A(pool_mode), A(aligned));
  m.def("roi_pool_forward", &roi_pool_forward, A(input), A(rois), A(output), A(argmax), A(pooled_height),
        A(pooled_width), A(spatial_scale));
  m.def("roi_pool_backward", &roi_pool_backward, A(grad_output), A(rois), A(argmax), A(grad_input), A(pooled_height),
        A(pooled_width), A(spatial_scale));
  m.def("sigmoid_focal_loss_forward", &sigmoid_focal_loss_forward, A(input), A(target), A(weight), A(output), A(gamma),
        A(alpha));
  m.def("sigmoid_focal_loss_backward", &sigmoid_focal_loss_backward, A(input), A(target), A(weight), A(grad_input),
        A(gamma), A(alpha));
  m.def("deform_conv_forward", &deform_conv_forward, A(input), A(weight), A(offset), A(output), A(columns), A(ones),
        A(kW), A(kH), A(dW), A(dH), A(padW), A(padH), A(dilationW), A(dilationH), A(group), A(deformable_group),
        A(im2col_step));
  m.def("deform_conv_backward_input", &deform_conv_backward_input, A(input), A(offset), A(gradOutput), A(gradInput),
        A(gradOffset), A(weight), A(columns), A(kW), A(kH), A(dW), A(dH), A(padW), A(padH), A(dilationW), A(dilationH),
        A(group), A(deformable_group), A(im2col_step));
  m.def("deform_conv_backward_parameters", &deform_conv_backward_parameters, A(input), A(offset), A(gradOutput),
        A(gradWeight), A(columns), A(ones), A(kW), A(kH), A(dW), A(dH), A(padW), A(padH), A(dilationW), A(dilationH),
        A(group), A(deformable_group), A(scale), A(im2col_step));
  m.def("modulated_deform_conv_forward", &modulated_deform_conv_forward, A(input), A(weight), A(bias), A(ones),
        A(offset), A(mask), A(output), A(columns), A(kernel_h), A(kernel_w), A(stride_h), A(stride_w), A(pad_h),
        A(pad_w), A(dilation_h), A(dilation_w), A(group), A(deformable_group), A(with_bias));
  m.def("modulated_deform_conv_backward", &modulated_deform_conv_backward, A(input), A(weight), A(bias), A(ones),
        A(offset), A(mask), A(columns), A(grad_input), A(grad_weight), A(grad_bias), A(grad_offset), A(grad_mask),
        A(grad_output), A(kernel_h), A(kernel_w), A(stride_h), A(stride_w), A(pad_h), A(pad_w), A(dilation_h),
        A(dilation_w), A(group), A(deformable_group), A(with_bias));
}
